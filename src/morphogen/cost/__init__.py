"""What a sub-network costs: FLOPs, memory, normalisation, communication, time of inference."""
