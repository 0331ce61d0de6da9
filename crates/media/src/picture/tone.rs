//! HDR pictures (PQ or HLG, ITU-R BT.2100) brought to what every screen shows, BT.709, through libavfilter.

use std::ffi::CString;
use std::ptr;

use ffmpeg_next::ffi;
use ffmpeg_next::frame::Video;

use crate::MediaError;
use crate::av;
use crate::probe::Hdr;

/// Luminance in nits of what is shown as white: that of graphics and paper in HDR (ITU-R BT.2408).
const WHITE: u32 = 203;

/// What is brighter than white is compressed from here (a share of white) up to the peak, in multiples of white: 1000
/// nits, the usual mastering display. Taken as given, for what a stream says of its own peak comes with keyframes
/// only, and a frame must not depend on where decoding began.
const KNEE: f64 = 0.3;
const PEAK: f64 = 1000.0 / WHITE as f64;

const DOING: &str = "bring an HDR picture to BT.709";

/// Tone-maps pictures of one video. What comes out is 8-bit 4:4:4, limited range, BT.709.
pub(super) struct ToneMapper {
    transfer: Hdr,
    graph: *mut ffi::AVFilterGraph,
    source: *mut ffi::AVFilterContext,
    sink: *mut ffi::AVFilterContext,
    /// Width, height and format of the pictures that the graph takes.
    made_for: Option<(i32, i32, i32)>,
}

// SAFETY: the graph is owned with all that is in it, and no filter in it is tied to a thread.
unsafe impl Send for ToneMapper {}

impl Drop for ToneMapper {
    fn drop(&mut self) {
        // SAFETY: owned, freed once, with its filters; null is fine.
        unsafe { ffi::avfilter_graph_free(&raw mut self.graph) };
    }
}

impl ToneMapper {
    pub(super) fn new(transfer: Hdr) -> Self {
        let graph = ptr::null_mut();
        Self { transfer, graph, source: ptr::null_mut(), sink: ptr::null_mut(), made_for: None }
    }

    /// The picture of a decoded frame, brought to BT.709.
    pub(super) fn map(&mut self, decoded: &Video) -> Result<Video, MediaError> {
        let mut frame = super::share(decoded)?;
        let mut mapped = Video::empty();
        // SAFETY: both frames are valid, ours are references of our own; the graph was made for frames like this.
        unsafe {
            let f = &mut *frame.as_mut_ptr();
            f.color_trc = match self.transfer {
                Hdr::Pq => ffi::AVColorTransferCharacteristic::AVCOL_TRC_SMPTE2084,
                Hdr::Hlg => ffi::AVColorTransferCharacteristic::AVCOL_TRC_ARIB_STD_B67,
            };
            // What is not said is as HDR nearly always is.
            if f.color_primaries == ffi::AVColorPrimaries::AVCOL_PRI_UNSPECIFIED {
                f.color_primaries = ffi::AVColorPrimaries::AVCOL_PRI_BT2020;
            }
            if f.colorspace == ffi::AVColorSpace::AVCOL_SPC_UNSPECIFIED {
                f.colorspace = ffi::AVColorSpace::AVCOL_SPC_BT2020_NCL;
            }
            if f.color_range == ffi::AVColorRange::AVCOL_RANGE_UNSPECIFIED {
                f.color_range = ffi::AVColorRange::AVCOL_RANGE_MPEG;
            }
            f.pts = 0;
            self.prepare((f.width, f.height, f.format))?;
            av::check(DOING, ffi::av_buffersrc_add_frame(self.source, f))?;
            av::check(DOING, ffi::av_buffersink_get_frame(self.sink, mapped.as_mut_ptr()))?;
        }
        Ok(mapped)
    }

    /// Makes the graph, unless there is one for such pictures.
    fn prepare(&mut self, shape: (i32, i32, i32)) -> Result<(), MediaError> {
        if self.made_for == Some(shape) {
            return Ok(());
        }
        self.made_for = None;
        let (width, height, format) = shape;
        // zimg takes no subsampled pictures of odd size.
        let odd = if width % 2 != 0 || height % 2 != 0 { "format=yuv444p10le," } else { "" };
        let source = format!("video_size={width}x{height}:pix_fmt={format}:time_base=1/25:pixel_aspect=1/1");
        let filters = format!(
            "{odd}zscale=transfer=linear:npl={WHITE},format=gbrpf32le,zscale=primaries=bt709,\
             tonemap=tonemap=mobius:param={KNEE}:peak={PEAK}:desat=0,\
             zscale=transfer=bt709:matrix=bt709:range=tv,format=yuv444p"
        );
        let text = |text: String| CString::new(text).map_err(|_| av::out_of_memory());
        let (source, filters) = (text(source)?, text(filters)?);
        // SAFETY: names are NUL-terminated and copied. The two lists of pads are freed whatever came of parsing;
        // contexts belong to the graph, which is freed with `self`.
        unsafe {
            ffi::avfilter_graph_free(&raw mut self.graph);
            self.graph = ffi::avfilter_graph_alloc();
            let mut outputs = ffi::avfilter_inout_alloc();
            let mut inputs = ffi::avfilter_inout_alloc();
            let code = if self.graph.is_null() || outputs.is_null() || inputs.is_null() {
                ffi::AVERROR(libc::ENOMEM)
            } else {
                (*self.graph).nb_threads = 1;
                self.connect(&source, &filters, &raw mut inputs, &raw mut outputs)
            };
            ffi::avfilter_inout_free(&raw mut inputs);
            ffi::avfilter_inout_free(&raw mut outputs);
            if code == ffi::AVERROR_FILTER_NOT_FOUND {
                return Err(MediaError::Internal(
                    "This FFmpeg lacks what HDR video needs, the filters zscale and tonemap: install one that has them."
                        .to_owned(),
                ));
            }
            av::check(DOING, code)?;
        }
        self.made_for = Some(shape);
        Ok(())
    }

    /// Builds the graph between a source and a sink. FFmpeg's code, negative for a failure.
    ///
    /// # Safety
    /// The graph and both pads are newly allocated.
    unsafe fn connect(
        &mut self,
        source: &CString,
        filters: &CString,
        inputs: *mut *mut ffi::AVFilterInOut,
        outputs: *mut *mut ffi::AVFilterInOut,
    ) -> i32 {
        // SAFETY: what the caller promises; the names of pads are duplicated, for they are freed with them.
        unsafe {
            let code = ffi::avfilter_graph_create_filter(
                &raw mut self.source,
                ffi::avfilter_get_by_name(c"buffer".as_ptr()),
                c"in".as_ptr(),
                source.as_ptr(),
                ptr::null_mut(),
                self.graph,
            );
            if code < 0 {
                return code;
            }
            let code = ffi::avfilter_graph_create_filter(
                &raw mut self.sink,
                ffi::avfilter_get_by_name(c"buffersink".as_ptr()),
                c"out".as_ptr(),
                ptr::null(),
                ptr::null_mut(),
                self.graph,
            );
            if code < 0 {
                return code;
            }
            for (pad, name, filter) in [(*outputs, c"in", self.source), (*inputs, c"out", self.sink)] {
                (*pad).name = ffi::av_strdup(name.as_ptr());
                (*pad).filter_ctx = filter;
                (*pad).pad_idx = 0;
                (*pad).next = ptr::null_mut();
            }
            let code =
                ffi::avfilter_graph_parse_ptr(self.graph, filters.as_ptr(), inputs, outputs, ptr::null_mut());
            if code < 0 { code } else { ffi::avfilter_graph_config(self.graph, ptr::null_mut()) }
        }
    }
}
