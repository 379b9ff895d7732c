"""What a grant is and what is decided about it; pure."""
