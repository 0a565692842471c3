"""What a call may ask for beyond torch.nn: lengths, resets, states, single steps, gates."""
