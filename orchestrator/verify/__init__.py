"""Every digest of a store compared: what is damaged, what follows, and how it is repaired."""
