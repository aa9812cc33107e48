"""The files of docs/pages/deploy: their schemas, what they say of our commands, and what these do when they are run."""
