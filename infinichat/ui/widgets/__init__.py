"""The parts of the chat screen, one a file: attributes go down, messages come up."""
