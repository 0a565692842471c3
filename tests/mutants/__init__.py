"""Seeded faults: lines of the sources, what each is changed to, and the tests that have to notice.

``python -m tests.mutants`` makes them one at a time; a list for each language or part. A line that
is changed or moved in the sources is to be changed here too.
"""
