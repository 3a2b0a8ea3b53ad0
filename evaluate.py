"""Evaluate a run: `python evaluate.py run=runs/NAME/DATE_TIME_xxxx split=test`; see README.md."""

from cnnlab.cli import evaluate

if __name__ == "__main__":
    evaluate()
