"""Inspecting: what a packed, masked batch really is, in the terminal and as one page."""
