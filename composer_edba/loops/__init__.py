"""What training loops of one kind share, between the engine and the frameworks."""
