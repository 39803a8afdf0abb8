"""beamrec: one Apache Beam codebase from raw events to served recommendations."""

from pathlib import Path

from setuptools import find_packages, setup

# Each extra is what one kind of machine needs; a server never installs Beam or TensorFlow.
BATCH = ["apache-beam>=2.77,<3", "pyiceberg[sql-sqlite]>=0.12,<0.13", "polars>=2.1,<3", "fastavro>=1.13"]
STREAM = ["confluent-kafka>=2.16,<3", "fastavro>=1.13", "httpx>=0.28"]
TRAIN = [
    *BATCH,
    "tensorflow>=2.21,<2.22",
    "tf-keras>=2.21,<2.22",
    "tensorflow-transform>=1.21,<1.22",
    "tfx-bsl>=1.21,<1.22",
    "tensorflow-metadata>=1.21,<1.22",
    "tensorflow-recommenders>=0.7.7,<0.8",
    "scann>=1.4.2,<1.5",
]
SERVE = ["fastapi>=0.163", "uvicorn>=0.54,<0.55", "httptools>=0.9", "uvloop>=0.21; sys_platform != 'win32'",
         "fastavro>=1.13",  # serving.server builds on uvicorn's protocol: a new minor version is looked at first
         "scann>=1.4.2,<1.5; sys_platform == 'linux'"]  # ScaNN brings no TensorFlow: the index of lists made on demand
BIGTABLE = ["google-cloud-bigtable>=2.30"]
DEV = ["pytest>=9", "pytest-xdist>=3", "hypothesis>=6", "ruff>=0.14", "mypy>=1.18", "duckdb>=2", "httpx>=0.28", "uv>=0.9",
       "pyyaml>=6", "kubernetes-validate>=1.33", "schemathesis>=4.32"]

PACKAGES = ("schemas", "transforms", "models", "beam_pipelines", "serving", "benchmarks")

setup(
    name="beamrec",
    version="0.1.0",
    description="User events in, ranked recommendations out: one Apache Beam codebase for batch, training and serving.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=[f"{name}{rest}" for name in PACKAGES for rest in ("", ".*")]),
    package_data={"schemas.avro": ["*.avsc"], "serving.clients": ["*.js"], "serving.ranking": ["*.toml"],
                  "serving.page": ["*.html", "*.css", "*.js", "*.svg"]},
    install_requires=["numpy>=2.3", "pyarrow>=21", "xxhash>=3.6", "msgspec>=0.20", "rich>=14", "numba>=0.63", "lmdb>=3.0"],
    extras_require={"batch": BATCH, "stream": STREAM, "train": TRAIN, "serve": SERVE, "bigtable": BIGTABLE, "dev": DEV,
                    "all": [*TRAIN, *STREAM, *SERVE, *BIGTABLE]},
    entry_points={"console_scripts": ["beamrec = beam_pipelines.cli.main:main"]},
)
