# What the emulated machine runs, in the checkout: the tests that are named in tests-to-run, or those in which the machine matters.
uname -rm
grep -m1 Features /proc/cpuinfo
python3 -c "import sys, torch; print('Python', sys.version.split()[0], 'torch', torch.__version__)"
export PYTHONPATH=$PWD:$PWD/hooks GPUWATCH_TEST_PATIENCE=10
tests=$(cat tests-to-run)
# shellcheck disable=SC2086  # a list of words
python3 -m pytest -v --timeout 3000 -p no:cacheprovider -p no:randomly \
  ${tests:-tests/attach/test_aarch64.py tests/attach/test_injector.py tests/attach/test_visit.py tests/attach/test_training.py}
echo "all tests in it: $?"
