"""What EDBA and DBA cost in time and memory."""
