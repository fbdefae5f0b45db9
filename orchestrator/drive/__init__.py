"""Driving a plan: decide, act, judge what ended, remedy, until everything is done."""
