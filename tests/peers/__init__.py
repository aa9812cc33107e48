"""Other implementations of the protocol, as they behave on the wire. They share no code with ours."""
