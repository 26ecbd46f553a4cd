"""What was measured, one JSON Lines file a subject and device, and the code that keeps it.

``store`` reads and writes the files, ``key`` says what each of them was made from, and ``code``
names that by the syntax of the functions, so that a comment ages nothing.
"""
