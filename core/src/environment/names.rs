//! What a conda package is called on the Python Package Index.

/// What becomes of a conda package.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate<'a> {
    /// A package of the index, perhaps with extras.
    Package(&'a str),
    /// A program that must be on the node: the index has none, or something else of that name.
    Program(&'a str),
    /// Left out: wheels carry what they need of it.
    Bundled,
    /// Left out: GPU libraries come with the GPU builds of wheels, the driver with the node.
    Gpu,
    /// Nothing on the index does this; the remedy says what to do instead.
    Refused(&'static str),
}

const OTHER_LANGUAGE: &str =
    "it is no Python package: use an image that holds it, or install it on the node";
const LIBRARY: &str = "it is a system library: install it on the node with the system's own \
                       package manager and remove the line, or use an image that holds it";
const RAPIDS: &str = "RAPIDS wheels lie on NVIDIA's own index: put '--extra-index-url' with that \
                      index and the '-cu12' package into the 'pip:' list";

/// Conda names that differ on the index. Sorted, for the search.
const RENAMED: &[(&str, &str)] = &[
    ("_py-xgboost-mutex", "xgboost"),
    ("black-jupyter", "black[jupyter]"),
    ("brotli-python", "brotli"),
    ("cupy", "cupy-cuda12x"),
    ("cupy-core", "cupy-cuda12x"),
    ("dask-core", "dask"),
    ("dateutil", "python-dateutil"),
    ("faiss", "faiss-cpu"),
    ("faiss-gpu", "faiss-gpu-cu12"),
    ("fire", "fire"),
    ("geopandas-base", "geopandas"),
    ("huggingface_accelerate", "accelerate"),
    ("keras-gpu", "keras"),
    ("lightgbm-gpu", "lightgbm"),
    ("matplotlib-base", "matplotlib"),
    ("msgpack-python", "msgpack"),
    ("numpy-base", "numpy"),
    ("opencv", "opencv-python-headless"),
    ("opencv-python", "opencv-python-headless"),
    ("psycopg2", "psycopg2-binary"),
    ("py-opencv", "opencv-python-headless"),
    ("py-xgboost", "xgboost"),
    ("py-xgboost-cpu", "xgboost"),
    ("py-xgboost-gpu", "xgboost"),
    ("pyarrow-core", "pyarrow"),
    ("pyqt", "pyqt5"),
    ("pytables", "tables"),
    ("python-duckdb", "duckdb"),
    ("python-flatbuffers", "flatbuffers"),
    ("python-graphviz", "graphviz"),
    ("python-kaleido", "kaleido"),
    ("python-kubernetes", "kubernetes"),
    ("python-lmdb", "lmdb"),
    ("python-tzdata", "tzdata"),
    ("python-xxhash", "xxhash"),
    ("python-zstd", "zstd"),
    ("pytorch", "torch"),
    ("pytorch-cpu", "torch"),
    ("pytorch-gpu", "torch"),
    ("pytorch_geometric", "torch-geometric"),
    ("ray-all", "ray[all]"),
    ("ray-core", "ray"),
    ("ray-data", "ray[data]"),
    ("ray-default", "ray[default]"),
    ("ray-rllib", "ray[rllib]"),
    ("ray-serve", "ray[serve]"),
    ("ray-train", "ray[train]"),
    ("ray-tune", "ray[tune]"),
    ("ruamel_yaml", "ruamel.yaml"),
    ("seaborn-base", "seaborn"),
    ("sklearn", "scikit-learn"),
    ("tensorflow-base", "tensorflow"),
    ("tensorflow-eigen", "tensorflow"),
    ("tensorflow-gpu", "tensorflow[and-cuda]"),
    ("tensorflow-mkl", "tensorflow"),
    ("torchvision-cpu", "torchvision"),
    ("torchvision-gpu", "torchvision"),
    ("uvicorn-standard", "uvicorn[standard]"),
    ("xgboost-cpu", "xgboost"),
    ("xgboost-gpu", "xgboost"),
    ("yaml", "pyyaml"),
];

/// Conda packages that are programs, and the program that shows they are there. Sorted.
const PROGRAMS: &[(&str, &str)] = &[
    ("bash", "bash"),
    ("c-compiler", "cc"),
    ("clang", "clang"),
    ("compilers", "cc"),
    ("coreutils", "ls"),
    ("curl", "curl"),
    ("cxx-compiler", "c++"),
    ("ffmpeg", "ffmpeg"),
    ("fortran-compiler", "gfortran"),
    ("gcc", "gcc"),
    ("gcc_linux-64", "gcc"),
    ("gfortran", "gfortran"),
    ("gfortran_linux-64", "gfortran"),
    ("git", "git"),
    ("git-lfs", "git-lfs"),
    ("go", "go"),
    ("graphviz", "dot"),
    ("gxx", "g++"),
    ("gxx_linux-64", "g++"),
    ("htop", "htop"),
    ("imagemagick", "convert"),
    ("java-jdk", "javac"),
    ("jq", "jq"),
    ("libxml2-utils", "xmllint"),
    ("llvm", "llvm-config"),
    ("make", "make"),
    ("mpich", "mpirun"),
    ("nano", "nano"),
    ("nodejs", "node"),
    ("nvcc_linux-64", "nvcc"),
    ("openjdk", "java"),
    ("openmpi", "mpirun"),
    ("openssh", "ssh"),
    ("p7zip", "7z"),
    ("pandoc", "pandoc"),
    ("parallel", "parallel"),
    ("perl", "perl"),
    ("pkg-config", "pkg-config"),
    ("poppler", "pdftotext"),
    ("rclone", "rclone"),
    ("rsync", "rsync"),
    ("rust", "rustc"),
    ("samtools", "samtools"),
    ("sed", "sed"),
    ("tar", "tar"),
    ("tesseract", "tesseract"),
    ("tmux", "tmux"),
    ("unzip", "unzip"),
    ("vim", "vim"),
    ("wget", "wget"),
    ("zip", "zip"),
];

/// Libraries that wheels carry inside or that Python brings, as exported environments list them.
/// Sorted.
const BUNDLED: &[&str] = &[
    "_libgcc_mutex",
    "_openmp_mutex",
    "_tflow_select",
    "arrow-cpp",
    "blas",
    "brotli-bin",
    "bzip2",
    "c-ares",
    "ca-certificates",
    "cpuonly",
    "cyrus-sasl",
    "dbus",
    "expat",
    "fontconfig",
    "freetype",
    "gettext",
    "gflags",
    "giflib",
    "glib",
    "glog",
    "gmp",
    "gnutls",
    "grpc-cpp",
    "gst-plugins-base",
    "gstreamer",
    "hdf5",
    "icu",
    "intel-openmp",
    "jpeg",
    "keyutils",
    "krb5",
    "lame",
    "lcms2",
    "ld_impl_linux-64",
    "lerc",
    "llvm-openmp",
    "lz4-c",
    "mkl",
    "mkl-service",
    "mkl_fft",
    "mkl_random",
    "mpc",
    "mpfr",
    "ncurses",
    "nettle",
    "nomkl",
    "nspr",
    "nss",
    "openblas",
    "openh264",
    "openjpeg",
    "openssl",
    "orc",
    "pcre",
    "pcre2",
    "pip",
    "pixman",
    "python_abi",
    "pytorch-mutex",
    "qt",
    "qt-main",
    "re2",
    "readline",
    "snappy",
    "sqlite",
    "tbb",
    "tensorflow-estimator",
    "tk",
    "tzdata",
    "unixodbc",
    "xz",
    "zeromq",
    "zlib",
    "zstd",
];

/// What the GPU builds of wheels bring. Sorted.
const GPU: &[&str] = &[
    "cuda",
    "cuda-cudart",
    "cuda-cupti",
    "cuda-libraries",
    "cuda-nvrtc",
    "cuda-nvtx",
    "cuda-runtime",
    "cuda-toolkit",
    "cuda-version",
    "cudatoolkit",
    "cudnn",
    "cutensor",
    "libcublas",
    "libcudnn",
    "libcufft",
    "libcurand",
    "libcusolver",
    "libcusparse",
    "libnpp",
    "libnvjpeg",
    "nccl",
    "pytorch-cuda",
];

const REFUSED: &[(&str, &str)] = &[
    ("cuda-nvcc", LIBRARY),
    ("cudatoolkit-dev", LIBRARY),
    ("cudf", RAPIDS),
    ("cugraph", RAPIDS),
    ("cuml", RAPIDS),
    ("gdal", LIBRARY),
    ("geos", LIBRARY),
    ("ipopt", LIBRARY),
    ("julia", OTHER_LANGUAGE),
    ("mpi", "name an MPI: 'openmpi' or 'mpich'"),
    ("nltk_data", "download the data in the job with nltk.download()"),
    ("proj", LIBRARY),
    ("r", OTHER_LANGUAGE),
    ("rapids", RAPIDS),
];

fn among<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.binary_search_by_key(&name, |(key, _)| key).ok().map(|at| table[at].1)
}

/// What becomes of the conda package `name` (lower case). Unknown names are taken to be the same
/// on the index: most are.
pub(super) fn fate(name: &str) -> Fate<'_> {
    if let Some(package) = among(RENAMED, name) {
        return Fate::Package(package);
    }
    if let Some(program) = among(PROGRAMS, name) {
        return Fate::Program(program);
    }
    if let Some(remedy) = among(REFUSED, name) {
        return Fate::Refused(remedy);
    }
    if BUNDLED.binary_search(&name).is_ok() {
        return Fate::Bundled;
    }
    if GPU.binary_search(&name).is_ok() {
        return Fate::Gpu;
    }
    // R's packages, and C libraries of exported environments (libstdcxx-ng, xorg-libx11, …); the
    // few Python packages that begin with `lib` are named.
    if name.starts_with("r-") || name.starts_with("bioconductor-") {
        return Fate::Refused(OTHER_LANGUAGE);
    }
    if name.starts_with("cuda-") {
        return Fate::Gpu;
    }
    let python_lib = matches!(
        name,
        "librosa" | "libclang" | "libcst" | "libtmux" | "libsass" | "liblinear-official"
    );
    if (name.starts_with("lib") && !python_lib)
        || name.starts_with("xorg-")
        || name.starts_with("aws-c-")
        || name == "aws-checksums"
        || name.ends_with("_linux-64")
    {
        return Fate::Bundled;
    }
    Fate::Package(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_for_the_search() {
        assert!(RENAMED.is_sorted_by_key(|(name, _)| *name));
        assert!(PROGRAMS.is_sorted_by_key(|(name, _)| *name));
        assert!(REFUSED.is_sorted_by_key(|(name, _)| *name));
        assert!(BUNDLED.is_sorted());
        assert!(GPU.is_sorted());
    }

    #[test]
    fn no_name_has_two_fates() {
        let mut all: Vec<&str> = RENAMED.iter().map(|(name, _)| *name).collect();
        all.extend(PROGRAMS.iter().map(|(name, _)| *name));
        all.extend(REFUSED.iter().map(|(name, _)| *name));
        all.extend(BUNDLED);
        all.extend(GPU);
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
