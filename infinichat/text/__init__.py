"""Text for people and from people, shared by the app and the commands: made harmless, measured, read from
files. Standard library only."""
