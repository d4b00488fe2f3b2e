"""The command line: one file per noun, each imported only when it is the one that was asked for.

``commands.py`` lists the nouns. A noun's module has ``add_arguments(parser)`` and ``run(args, context)``, and
``run`` returns the exit status. Text goes to stdout, status and progress to stderr, and a failure is an
``InfiniChatError`` that ``main.py`` turns into one sentence. Nothing here imports torch at module level.
"""

from __future__ import annotations
