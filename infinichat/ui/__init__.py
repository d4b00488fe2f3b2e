"""The app: what the terminal shows in full screen. Entry point: ``infinichat.ui.app.run_app``.

It sends what the user does to one ``ChatSession`` on one worker thread (``worker.py``) and paints the events
that come back. It knows the store (to show a transcript at once) and no model: torch is imported on the
worker thread, after the first paint."""
