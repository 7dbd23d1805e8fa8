"""Packaging. Settings of the tools are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

# Each plug-out is tested against the framework it is for; the classifier on photographs that scikit-image ships and on
# scikit-learn's digits, and against its scores.
TEST = [
    "pytest>=8.2",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "transformers>=4.50",
    "segmentation-models-pytorch>=0.6",
    "scipy>=1.11",
    "scikit-image>=0.24",
    "scikit-learn>=1.4",
]

setup(
    name="vertebra",
    version="0.1.0",
    description="Backbones with feature pyramids for torchvision's detectors, and the trainer and COCO scorer to go with them",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["backbones*", "heads*", "engine*"]),
    install_requires=[
        "torch>=2.7",
        "torchvision>=0.22",
        "timm>=1.0",
        "pycocotools>=2.0.8",
        "albumentations==2.0.8",
        "hotcoco>=1.3",
        "msgspec>=0.18.6",
        "numpy>=1.26",
        "opencv-python-headless>=4.9",
        "pillow>=10.1",
        "pydantic>=2.11",
        "pyyaml>=6.0",
        "rich>=13.7",
        "safetensors>=0.4.5",
        "tensorboard>=2.16",
    ],
    extras_require={
        "transformers": ["transformers>=4.50"],
        "test": TEST,
        "dev": [*TEST, "ruff>=0.12", "mypy>=1.15", "types-PyYAML"],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
