"""Our backbones in the detectors people already use. Importing the module of a framework registers them there.

| import                                        | then, in that framework                                                  |
|-----------------------------------------------|--------------------------------------------------------------------------|
| backbones.plugins.detectron2                  | cfg.MODEL.BACKBONE.NAME = "build_vertebra_backbone"                      |
| backbones.plugins.mmdet                       | backbone=dict(type="VertebraBackbone", name="resnet50")                  |
| backbones.plugins.transformers                | DetrConfig(backbone_config=VertebraConfig(name="resnet50"))              |
| backbones.plugins.segmentation_models_pytorch | smp.Unet("vertebra_resnet50", encoder_weights=None)                      |
| backbones.plugins.timm                        | timm.create_model("vertebra_resnet50", features_only=True)               |

Each takes what `build_backbone` takes, and with `pyramid=` what `build_fpn_backbone` takes. Nothing is imported here: no
framework is needed but the one that is used. docs/plugins.md has an example for each.
"""
