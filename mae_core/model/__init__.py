"""Networks, masks, targets and what they cost in FLOPs."""
