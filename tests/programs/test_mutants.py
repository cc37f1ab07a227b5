"""The list of mutations fits the code, and what runs it tells who notices."""

import pytest

from tests import mutants
from tests.mutants import MUTATIONS, ROOT, Mutation

CODE = "def double(x):\n    return 2 * x\n\n\ndef half(x):\n    return x / 2\n"
TESTS = "from dinojax.sums import double\n\n\ndef test_double():\n    assert double(3) == 6\n"


def test_every_mutation_has_its_one_place_and_its_tests():
    code = "\0".join(path.read_text() for path in ROOT.glob("dinojax/**/*.py"))
    known = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    for one in MUTATIONS:
        assert code.count(one.old) == 1, f"{one.name}: {code.count(one.old)} places"
        assert one.new != one.old and one.fast
        for test in (*one.fast, *one.slow):
            assert known.count(f"def {test.partition('[')[0]}(") == 1, f"{one.name}: {test}"
    assert len({one.name for one in MUTATIONS}) == len(MUTATIONS)


@pytest.fixture
def tree(tmp_path):
    for name, text in (("dinojax/sums.py", CODE), ("tests/sums/test_sums.py", TESTS)):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path


def test_mutations_are_made_unmade_and_told(tree):
    rows = mutants.examine(
        tree,
        [
            Mutation("tripled", "return 2 * x", "return 3 * x", ("test_double",)),
            Mutation("unhalved", "return x / 2", "return x", ("test_double",)),
        ],
    )
    (one, where, told), (other, _, survived) = list(rows)
    assert (one, where) == ("tripled", "dinojax/sums.py")
    assert told.startswith("killed by test_double (")
    assert other == "unhalved" and survived.startswith("SURVIVED (")
    assert (tree / "dinojax/sums.py").read_text() == CODE


@pytest.mark.parametrize(
    ("old", "test", "error", "message"),
    [
        ("return 4 * x", "test_double", ValueError, "stands 0 times in dinojax/"),
        ("return", "test_double", ValueError, "stands 2 times in dinojax/"),
        ("return 2 * x", "test_triple", ValueError, "test_triple is defined in 0 files"),
        ("return 2 * x", "test_double[case]", RuntimeError, "pytest did not run"),
    ],
)
def test_what_is_not_there_is_an_error(tree, old, test, error, message):
    with pytest.raises(error, match=message):
        list(mutants.examine(tree, [Mutation("one", old, "return 5", (test,))]))


def test_a_test_that_fails_without_a_mutation_is_an_error(tree):
    path = tree / "tests/sums/test_sums.py"
    path.write_text(TESTS.replace("== 6", "== 7"))
    one = Mutation("tripled", "return 2 * x", "return 3 * x", ("test_double",))
    with pytest.raises(RuntimeError, match="test_double fails without a mutation"):
        list(mutants.examine(tree, [one]))
