"""What is wrong with a data set in COCO's format, named by file and id; a cleaned copy; and what training leaves out."""
