-- How far the sets of two scopes overlap, and how far chance would have it; see iou_of, which reads one layer only.

SELECT * FROM iou_of()
