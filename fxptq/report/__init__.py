"""What a run did, on the terminal and as a page."""
