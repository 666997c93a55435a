//! What a pipeline asks of the processor that runs it.

use std::fmt;

use serde::Deserialize;

use super::Pipeline;

/// A feature of a processor: it sums products of 8-bit integers exactly.
///
/// Without one of these, `x86` kernels add pairs of products in 16 bits, which saturate, and a quantized model gives
/// other vectors (Intel, "Lower Numerical Precision Deep Learning Inference and Training", 2018).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuFeature {
    /// AVX-512 VNNI: `x86` servers since Cascade Lake and Zen 4.
    Avx512Vnni,
    /// AVX-VNNI: `x86` since Alder Lake, without AVX-512 too.
    AvxVnni,
    /// The dot product instructions of `Arm` (`FEAT_DotProd`): Neoverse N1 and Apple M1, and later.
    Dotprod,
}

impl CpuFeature {
    /// Those that this machine's processor and operating system offer.
    pub fn of_this_machine() -> &'static [Self] {
        static FOUND: std::sync::LazyLock<Vec<CpuFeature>> = std::sync::LazyLock::new(detect);
        &FOUND
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Vec<CpuFeature> {
    let has = [
        (std::arch::is_x86_feature_detected!("avx512vnni"), CpuFeature::Avx512Vnni),
        (std::arch::is_x86_feature_detected!("avxvnni"), CpuFeature::AvxVnni),
    ];
    has.into_iter().filter_map(|(is_there, feature)| is_there.then_some(feature)).collect()
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Vec<CpuFeature> {
    std::arch::is_aarch64_feature_detected!("dotprod").then_some(CpuFeature::Dotprod).into_iter().collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Vec<CpuFeature> {
    Vec::new()
}

impl Pipeline {
    /// Whether a processor with these features may run it.
    pub fn runs_on(&self, features: &[CpuFeature]) -> bool {
        self.requires.is_empty() || self.requires.iter().any(|feature| features.contains(feature))
    }
}

/// `a, b or c`, for people.
pub fn any_of(features: &[CpuFeature]) -> String {
    match features {
        [] => "nothing".to_owned(),
        [one] => one.to_string(),
        [first @ .., last] => {
            format!("{} or {last}", first.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }
    }
}

impl fmt::Display for CpuFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Avx512Vnni => "avx512_vnni",
            Self::AvxVnni => "avx_vnni",
            Self::Dotprod => "dotprod",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;

    #[test]
    fn any_one_of_the_features_is_enough() {
        let catalogue = Catalogue::load(None).unwrap();
        let int8 = catalogue.pipeline("yunet-mobilefacenet-int8").unwrap();
        let all = [CpuFeature::Avx512Vnni, CpuFeature::AvxVnni, CpuFeature::Dotprod];
        assert_eq!(int8.requires, all);
        assert!(all.iter().all(|feature| int8.runs_on(&[*feature])));
        assert!(!int8.runs_on(&[]));
        let fp32 = catalogue.pipeline("yunet-mobilefacenet").unwrap();
        assert!(fp32.runs_on(&[]) && fp32.runs_on(&all));
        assert_eq!(any_of(&all), "avx512_vnni, avx_vnni or dotprod");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn agrees_with_what_the_kernel_says() {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = text.lines().find(|line| line.starts_with("flags") || line.starts_with("Features")).unwrap();
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let says = |feature: &CpuFeature| match feature {
            CpuFeature::Dotprod => flags.contains(&"asimddp"),
            other => flags.contains(&other.to_string().as_str()),
        };
        for feature in [CpuFeature::Avx512Vnni, CpuFeature::AvxVnni, CpuFeature::Dotprod] {
            assert_eq!(CpuFeature::of_this_machine().contains(&feature), says(&feature), "{feature}");
        }
    }
}
