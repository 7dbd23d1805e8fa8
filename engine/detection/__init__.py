"""Detection as a job: data in COCO's format, a detector on any backbone, COCO's scores."""
