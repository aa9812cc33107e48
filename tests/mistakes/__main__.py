"""Make all mistakes, and write the page."""

from .page import PATH, page_of
from .table import MISTAKES

if __name__ == "__main__":
    PATH.write_text(page_of(MISTAKES))
    print(f"{PATH.relative_to(PATH.parents[2])}: {sum(map(len, MISTAKES.values()))} mistakes")
