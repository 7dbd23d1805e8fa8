"""Semantic segmentation as a job: label maps or painted instances, a segmenter on any backbone, mIoU."""
