//! The model of a pipeline's second stage.

use std::path::Path;
use std::sync::Arc;

use shared::catalogue::{Pipeline, SecondStageKind};
use shared::joint_bayes::{DimensionError, FileError, JointBayes};

use super::{EngineError, EngineOptions, InferenceError, Network, OnCore};
use crate::assets::Assets;
use crate::vision::{Picture, pair};

/// A loaded second stage.
#[derive(Debug)]
pub(super) enum SecondModel {
    /// Arithmetic on vectors.
    Joint(Arc<JointBayes>),
    /// A network that sees both crops.
    Pair(Network),
}

/// Why the file of a second stage cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecondStageError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[from] std::io::Error),
    /// It is no model.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is made for another recognizer.
    #[error(transparent)]
    Dimension(#[from] DimensionError),
}

impl SecondModel {
    /// Loads the second stage of a pipeline that has one, from its file.
    pub(super) fn load(
        pipeline: &Pipeline,
        (library, file): (&Path, &Path),
        options: &EngineOptions,
    ) -> Result<Option<Self>, EngineError> {
        let Some(stage) = &pipeline.second_stage else { return Ok(None) };
        Ok(Some(match (stage.kind, &stage.input) {
            (SecondStageKind::PairNetwork, Some(input)) => {
                let shapes = pair::input_shapes(input);
                Self::Pair(Network::load("second_stage", (library, file), (shapes, 1), options)?)
            }
            _ => Self::Joint(Arc::new(read(pipeline, file)?)),
        }))
    }
}

/// The Joint Bayesian model of a pipeline, for who needs no other of its models; `None` where it has none.
pub(crate) async fn joint_bayes(pipeline: &Pipeline, assets: &Assets) -> Result<Option<Arc<JointBayes>>, EngineError> {
    let Some(stage) = pipeline.second_stage.as_ref().filter(|stage| stage.kind == SecondStageKind::JointBayesian)
    else {
        return Ok(None);
    };
    let file = assets.weights(pipeline, &stage.file).await?;
    let pipeline = pipeline.clone();
    let model = tokio::task::spawn_blocking(move || read(&pipeline, &file)).await??;
    Ok(Some(Arc::new(model)))
}

fn read(pipeline: &Pipeline, file: &Path) -> Result<JointBayes, EngineError> {
    let read = || -> Result<JointBayes, SecondStageError> {
        // Its length was compared with the entry's, which is bounded.
        let model = JointBayes::from_bytes(&std::fs::read(file)?)?;
        let found = pipeline.recognizer.dimension;
        if model.dimension() != found {
            return Err(DimensionError { wanted: model.dimension(), found }.into());
        }
        Ok(model)
    };
    read().map_err(|source| EngineError::SecondStage { file: file.to_owned(), source })
}

impl OnCore {
    /// What the pair network of the pipeline says of two aligned crops: more is more alike.
    pub async fn pair(&self, one: &Picture, other: &Picture) -> Result<f32, InferenceError> {
        let stage = self.pipeline().second_stage.as_ref().and_then(|stage| stage.input.as_ref());
        let (Some(input), Some(SecondModel::Pair(network))) = (stage, &self.engine.loaded.second) else {
            return Err(InferenceError::NoModel);
        };
        let inputs = self.step(|| pair::inputs(input, one, other)).await;
        let answer = self.ask(network, &inputs).await?;
        match answer.as_slice() {
            [score] if score.is_finite() => Ok(*score),
            _ => Err(InferenceError::Answer { numbers: answer.len() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::catalogue::Pipeline;
    use shared::digest::sha256_hex;
    use shared::joint_bayes::Matrix;

    use super::super::Engine;
    use super::*;
    use crate::testing;

    /// The tiny pipeline with this second stage, whose file lies in the folder or in the repository.
    fn with(stage: &str, name: &str, bytes: &[u8]) -> Pipeline {
        let tiny = std::fs::read_to_string(testing::repository().join("models/tiny/tiny.toml")).unwrap();
        let file = format!(
            "[second_stage.file]\nname = \"{name}\"\nsha256 = \"{}\"\nsize_bytes = {}\nlicence = \"own\"\nuse = \"permissive\"\n",
            sha256_hex(bytes),
            bytes.len()
        );
        Pipeline::parse("x.toml", &format!("{tiny}\n[second_stage]\n{stage}\n{file}")).unwrap()
    }

    fn pair_stage(tensors: &str) -> String {
        format!(
            "kind = \"pair-network\"\nthreshold = 0.7\ninput = {{ width = 64, height = 64, channels = \"rgb\", \
             mean = [0.0, 0.0, 0.0], scale = [1.0, 1.0, 1.0], tensors = \"{tensors}\" }}"
        )
    }

    #[tokio::test]
    async fn second_stage_networks_of_one_and_of_two_inputs_see_both_crops() {
        for tensors in ["one", "two"] {
            let name = format!("tiny_pair_{tensors}.onnx");
            let bytes = std::fs::read(testing::repository().join("models/tiny").join(&name)).unwrap();
            let pipeline = with(&pair_stage(tensors), &name, &bytes);
            let engine = Engine::load(&pipeline, &testing::tiny_assets(), EngineOptions::for_cpu(1)).await.unwrap();
            let flat = |value: u8| Picture { width: 112, height: 112, rgb: vec![value; 112 * 112 * 3] };
            let score = async |one: u8, other: u8| {
                engine.on_core(|core| async move { core.pair(&flat(one), &flat(other)).await }).await.unwrap().unwrap()
            };
            assert!((score(90, 90).await - 1.0).abs() < 1e-6);
            assert!((score(90, 154).await - 0.5).abs() < 1e-6);
        }
    }

    #[tokio::test]
    async fn a_second_stage_of_other_shapes_is_refused() {
        let bytes = std::fs::read(testing::repository().join("models/tiny/tiny_pair_two.onnx")).unwrap();
        let pipeline = with(&pair_stage("one"), "tiny_pair_two.onnx", &bytes);
        let refused = Engine::load(&pipeline, &testing::tiny_assets(), EngineOptions::for_cpu(1)).await.unwrap_err();
        assert!(refused.to_string().contains("[6, 64, 64]"), "{refused}");
    }

    #[tokio::test]
    async fn a_second_stage_file_is_checked_when_models_are_loaded() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("models")).unwrap();
        for name in ["tiny_detector.onnx", "tiny_recognizer.onnx"] {
            std::fs::copy(
                testing::repository().join("models/tiny").join(name),
                folder.path().join("models").join(name),
            )
            .unwrap();
        }
        let tiny = testing::tiny_assets();
        let assets = Assets {
            assets_dir: Some(folder.path().to_owned()),
            runtime_library: tiny.runtime_library().ok(),
            ..tiny.clone()
        };
        let model = |side: usize| {
            JointBayes::new(vec![0.0; side], Matrix::diagonal(side, -1.0), Matrix::diagonal(side, -2.0))
                .unwrap()
                .to_bytes()
        };
        for (bytes, wanted) in [
            (model(64), None),
            (model(32), Some("vectors of 32 components")),
            (b"no model".to_vec(), Some("train joint-bayes")),
        ] {
            std::fs::write(folder.path().join("models/second.jb"), &bytes).unwrap();
            let pipeline = with("kind = \"joint-bayesian\"\nthreshold = 0.0", "second.jb", &bytes);
            let loaded = Engine::load(&pipeline, &assets, EngineOptions::for_cpu(1)).await;
            let alone = joint_bayes(&pipeline, &assets).await;
            match wanted {
                None => assert!(loaded.unwrap().joint_bayes().is_some() && alone.unwrap().is_some()),
                Some(wanted) => {
                    for error in [loaded.unwrap_err(), alone.unwrap_err()] {
                        let text = format!("{:#}", anyhow::Error::new(error));
                        assert!(text.contains("second.jb") && text.contains(wanted), "{text}");
                    }
                }
            }
        }
    }
}
