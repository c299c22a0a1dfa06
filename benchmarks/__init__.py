"""Speed: each `python -m benchmarks.NAME` measures one thing, prints a table and appends it, with
versions and hardware, to RESULTS.md. Run from the repository's folder.

On a machine with CUDA (with less memory use `1b` instead of `8b`):

python -m benchmarks.gcg --shape 8b --behaviors 2 [--venv FOLDER] [--wheels FOLDER]
python -m benchmarks.growth --shape 8b
python -m benchmarks.generate --shape 8b
python -m benchmarks.soft_prompt --shape 8b
python -m benchmarks.training --shape 8b
python -m benchmarks.step_profile --shape 8b
python -m benchmarks.matrix --device cuda

`benchmarks/gpu.sh OUT` runs what matters of these in eleven minutes, each with its time limit,
`benchmarks/gpu_smollm2.sh run OUT` the matrix `real` in nine more;
`python -m benchmarks.verdicts RUN RUN` counts what a CPU and a GPU judge otherwise.
"""
