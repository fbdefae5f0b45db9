"""The truth: records, leases, journals and facts, in one directory."""
