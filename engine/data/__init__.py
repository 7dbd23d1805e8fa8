"""From a COCO annotation file to batches: annotations, masks, augmentation, sampling, loading."""
