"""The record of a grant, and the decisions on it; pure."""
