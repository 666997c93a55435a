//! dlib's models (`face_recognition_models`) in the forms that face-id runs: networks as ONNX, shape predictors as trees.

mod bytes;
mod graph;
mod layers;
mod trees;

use anyhow::{Context as _, ensure};
use shared::digest::sha256_hex;

use self::graph::Output;
use self::layers::Network;

/// The package, as pip is asked for it, and where its models lie within.
pub(super) const PACKAGE: &str = "face_recognition_models==0.3.0";
pub(super) const FOLDER: &str = "face_recognition_models/models";
/// What the catalogue's entries that read these networks subtract from red, green and blue.
const MEAN: [f32; 3] = [122.782, 117.001, 104.298];

/// A file of the package.
pub(super) struct Source {
    /// Its name there.
    pub(super) name: &'static str,
    /// Its name in the catalogue's entries, as another kind of file.
    pub(super) becomes: &'static str,
    sha256: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Network(Output),
    Trees,
}

pub(super) const SOURCES: [Source; 4] = [
    Source {
        name: "mmod_human_face_detector.dat",
        becomes: "mmod_human_face_detector.onnx",
        sha256: "4cb19393e2fbaf2b1609a9319ad5386618c886a6234ec1b971f3e87c85d87fe6",
        kind: Kind::Network(Output::Map),
    },
    Source {
        name: "dlib_face_recognition_resnet_model_v1.dat",
        becomes: "dlib_face_recognition_resnet_model_v1.onnx",
        sha256: "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
        kind: Kind::Network(Output::Vector),
    },
    Source {
        name: "shape_predictor_5_face_landmarks.dat",
        becomes: "shape_predictor_5_face_landmarks.trees",
        sha256: "c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888",
        kind: Kind::Trees,
    },
    Source {
        name: "shape_predictor_68_face_landmarks.dat",
        becomes: "shape_predictor_68_face_landmarks.trees",
        sha256: "fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f",
        kind: Kind::Trees,
    },
];

impl Source {
    /// The file that this one becomes: the same bytes everywhere.
    pub(super) fn converted(&self, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
        let found = sha256_hex(bytes);
        ensure!(found == self.sha256, "its sha256 is {found}, and that of {PACKAGE} has {}", self.sha256);
        match self.kind {
            Kind::Trees => Ok(trees::read(bytes)?.to_bytes()),
            Kind::Network(output) => network(bytes, output),
        }
        .context("it is not as dlib writes it")
    }
}

fn network(bytes: &[u8], output: Output) -> anyhow::Result<Vec<u8>> {
    let network = Network::read(bytes)?;
    ensure!(network.mean == MEAN, "it subtracts {:?} from its input", network.mean);
    graph::model(&network, output)
}
