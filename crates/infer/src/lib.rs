//! Finds objects in pictures: SSD300 with a ResNet50 backbone, over libtorch.
//!
//! This room holds the network, its weights, the choice of the device, and the threads that own the model.
//! It is the only one that knows a tensor. Never in here: video, how a job goes on ([`stage`] is the one seam to the
//! worker loop). [`service`] puts it on the network, with single pictures at `POST /v1/detect` ([`api`]).
//!
//! A [`ModelFile`] says what a weights file is; [`Detector::start`] puts it on a device; [`Detector::detect`]
//! turns pictures into detections.

pub mod api;
pub mod args;
pub mod calibration;
pub mod detector;
pub mod device;
mod native;
pub mod service;
pub mod ssd300;
pub mod stage;
pub mod still;
pub mod stills;
pub mod weights;

pub use detector::{DetectError, Detector, DetectorSettings, Frames, resolve};
pub use device::{Device, DeviceChoice, DeviceError, PrecisionChoice};
pub use native::skip_destructors;
pub use ssd300::nms::NmsOptions;
pub use stage::DetectStage;
pub use weights::{ModelError, ModelFile};
