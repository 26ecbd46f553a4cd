"""Exit codes, for CI."""

PASS, REGRESSION, REFUSED, INCONCLUSIVE, RUN_FAILED, INTERRUPTED = 0, 1, 2, 3, 4, 130
OF_VERDICT = {"PASS": PASS, "REGRESSION": REGRESSION, "INCONCLUSIVE": INCONCLUSIVE}
HELP = """exit codes:
  0    PASS
  1    REGRESSION
  2    wrong usage, or refused: nothing was judged, and the reason is printed
  3    INCONCLUSIVE: says what would settle it, where further runs or questions can
  4    the run failed: a server, a request or this program; that is no wrong answer
  130  interrupted; finished runs are kept, the same command goes on from there"""
