"""The gates bite: known faults, put back one at a time, must each fail a test.

python3 -m tests.faults                 all of them, into evidence/seeded-faults.jsonl
python3 -m tests.faults NAME...         these; the other rows stay as they are
python3 -m tests.faults --slug S        those of one slug
python3 -m tests.faults --platform cuda those in programs that run on a GPU alone
"""
