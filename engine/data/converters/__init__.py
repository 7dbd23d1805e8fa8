"""Own data in another format, written as COCO JSON: VOC's XML, YOLO's text files, PNG masks, LabelMe's JSON."""
