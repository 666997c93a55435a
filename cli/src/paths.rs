//! Where the settings say that weights and the ONNX Runtime library lie.

use shared::config::Config;
use worker::assets::Assets;

/// The assets that a configuration describes.
pub(crate) fn assets(config: &Config) -> Assets {
    Assets {
        assets_dir: config.assets_dir().map(Into::into),
        cache_dir: config.cache_dir().into(),
        runtime_library: config.runtime_library().map(Into::into),
        allow_download: config.models.allow_download,
        accepted_licences: config.models.accepted_licences.clone(),
    }
}
