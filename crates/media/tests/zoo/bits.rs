//! Bytes that FFmpeg's command line can't be made to write.

/// Overwrites the display matrix in the video track's header (`tkhd`, version 0) with `[a, b, c, d]`.
pub fn set_display_matrix(bytes: &mut [u8], [a, b, c, d]: [i32; 4]) {
    let at = bytes.windows(4).position(|w| w == b"tkhd").expect("a track header") + 4 + 40;
    let one = 1 << 16;
    let matrix = [a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30];
    for (i, value) in matrix.into_iter().enumerate() {
        bytes[at + 4 * i..][..4].copy_from_slice(&value.to_be_bytes());
    }
}

/// Where, in an MPEG transport stream, the packet lies that begins frame `n` (in the file's order) of its one
/// video stream (ISO 13818-1, 2.4.3: payload unit start of PID 256, FFmpeg's first).
pub fn ts_offset_of_frame(bytes: &[u8], n: usize) -> usize {
    bytes
        .chunks_exact(188)
        .enumerate()
        .filter(|(_, p)| p[1] & 0x40 != 0 && (u16::from(p[1] & 0x1f) << 8 | u16::from(p[2])) == 256)
        .nth(n)
        .map_or(bytes.len(), |(at, _)| at * 188)
}

/// An element of EBML: id, length in eight bytes, content.
fn element(id: &[u8], content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64 | 1 << 56).to_be_bytes();
    [id, &length, content].concat()
}

fn number(id: &[u8], value: u64) -> Vec<u8> {
    element(id, &value.to_be_bytes())
}

/// A Matroska file of one video track (RFC 9559): packets are (milliseconds, keyframe, bytes), a cluster a second
/// and a cue for each.
pub fn matroska<'a>(
    codec: &str,
    private: &[u8],
    (width, height): (u64, u64),
    packets: impl Iterator<Item = (i64, bool, &'a [u8])>,
) -> Vec<u8> {
    let header = element(
        b"\x1a\x45\xdf\xa3",
        &[element(b"\x42\x82", b"matroska"), number(b"\x42\x87", 4), number(b"\x42\x85", 2)].concat(),
    );
    let info = element(b"\x15\x49\xa9\x66", &number(b"\x2a\xd7\xb1", 1_000_000));
    let video = element(b"\xe0", &[number(b"\xb0", width), number(b"\xba", height)].concat());
    let mut track = [
        number(b"\xd7", 1),
        number(b"\x73\xc5", 1),
        number(b"\x83", 1),
        element(b"\x86", codec.as_bytes()),
        video,
    ]
    .concat();
    if !private.is_empty() {
        track.extend(element(b"\x63\xa2", private));
    }
    let tracks = element(b"\x16\x54\xae\x6b", &element(b"\xae", &track));

    let mut body = [info, tracks].concat();
    let (mut cluster, mut begin) = (Vec::new(), None::<i64>);
    let close = |cluster: &mut Vec<u8>, body: &mut Vec<u8>, begin: Option<i64>| {
        if let Some(begin) = begin {
            let content = [number(b"\xe7", begin as u64), std::mem::take(cluster)].concat();
            body.extend(element(b"\x1f\x43\xb6\x75", &content));
        }
    };
    for (time, keyframe, data) in packets {
        if begin.is_none_or(|begin| time >= begin + 1000) {
            close(&mut cluster, &mut body, begin);
            begin = Some(time);
        }
        let offset = (time - begin.unwrap_or(0)) as i16;
        let flags = if keyframe { 0x80 } else { 0 };
        // A SimpleBlock, with a length as short as it gets: there may be millions.
        let length = 4 + data.len() as u64;
        cluster.push(0xa3);
        if length < 0x7f {
            cluster.push(0x80 | length as u8);
        } else {
            cluster.extend_from_slice(&((length as u32) | 0x1000_0000).to_be_bytes());
        }
        cluster.push(0x81);
        cluster.extend_from_slice(&offset.to_be_bytes());
        cluster.push(flags);
        cluster.extend_from_slice(data);
    }
    close(&mut cluster, &mut body, begin);
    [header, element(b"\x18\x53\x80\x67", &body)].concat()
}

/// Bits, most significant first, with H.264's Exp-Golomb numbers (ITU-T H.264, 9.1).
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: u32,
}

impl Bits {
    fn put(&mut self, value: u32, bits: u32) {
        for bit in (0..bits).rev() {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let last = self.bytes.len() - 1;
            self.bytes[last] |= ((value >> bit & 1) as u8) << (7 - self.used % 8);
            self.used += 1;
        }
    }

    fn ue(&mut self, value: u32) {
        let length = (value + 1).ilog2();
        self.put(0, length);
        self.put(value + 1, length + 1);
    }

    fn se(&mut self, value: i32) {
        self.ue(if value > 0 { 2 * value.unsigned_abs() - 1 } else { 2 * value.unsigned_abs() });
    }

    fn align(&mut self) {
        while !self.used.is_multiple_of(8) {
            self.put(0, 1);
        }
    }

    /// Ends a NAL unit's payload, and keeps start codes from appearing inside (7.4.1).
    fn unit(mut self, header: u8) -> Vec<u8> {
        self.put(1, 1);
        self.align();
        let mut unit = vec![header];
        let mut zeros = 0;
        for byte in self.bytes {
            if zeros >= 2 && byte <= 3 {
                unit.push(3);
                zeros = 0;
            }
            zeros = if byte == 0 { zeros + 1 } else { 0 };
            unit.push(byte);
        }
        unit
    }
}

/// Sequence and picture parameter sets of [`h264_fields`]: High profile, for the sake of fields of 4:2:0.
fn parameter_sets(width: u32, height: u32) -> [Vec<u8>; 2] {
    let mut sps = Bits::default();
    sps.put(100, 8);
    sps.put(0, 8);
    sps.put(30, 8);
    sps.ue(0); // seq_parameter_set_id
    sps.ue(1); // chroma_format_idc
    sps.ue(0);
    sps.ue(0);
    sps.put(0, 2);
    sps.ue(0); // log2_max_frame_num_minus4
    sps.ue(2); // pic_order_cnt_type: output order is decoding order
    sps.ue(1); // max_num_ref_frames
    sps.put(0, 1);
    sps.ue(width / 16 - 1);
    sps.ue(height / 32 - 1); // in pairs of macroblocks, as fields are allowed
    sps.put(0, 1); // frame_mbs_only_flag
    sps.put(0, 1); // mb_adaptive_frame_field_flag
    sps.put(1, 1); // direct_8x8_inference_flag
    sps.put(0, 1);
    sps.put(0, 1); // no VUI
    let mut pps = Bits::default();
    pps.ue(0);
    pps.ue(0);
    pps.put(0, 1); // CAVLC
    pps.put(0, 1);
    pps.ue(0);
    pps.ue(0);
    pps.ue(0);
    pps.put(0, 1);
    pps.put(0, 2);
    pps.se(0);
    pps.se(0);
    pps.se(0);
    pps.put(1, 1); // deblocking_filter_control_present_flag
    pps.put(0, 1);
    pps.put(0, 1);
    [sps.unit(0x67), pps.unit(0x68)]
}

/// Raw 4:2:0 frames as H.264 in which every field is a picture of its own (top first), made of macroblocks that
/// hold their samples as they are (I_PCM). Each is one NAL unit without start code; every frame's fields are an IDR
/// picture and an I picture.
pub fn h264_fields(raw: &[u8], width: usize, height: usize) -> Vec<Vec<u8>> {
    let frame_size = width * height * 3 / 2;
    let mut fields = Vec::new();
    for (n, frame) in raw.chunks_exact(frame_size).enumerate() {
        for bottom in 0..2 {
            let mut slice = Bits::default();
            slice.ue(0); // first_mb_in_slice
            slice.ue(7); // I, all slices
            slice.ue(0);
            slice.put(0, 4); // frame_num: 0 in an IDR picture, and in its second field
            slice.put(1, 1); // field_pic_flag
            slice.put(bottom as u32, 1);
            if bottom == 0 {
                slice.ue((n % 2) as u32); // idr_pic_id
                slice.put(0, 2); // dec_ref_pic_marking of an IDR picture
            } else {
                slice.put(0, 1); // and of another
            }
            slice.se(0);
            slice.ue(1); // no deblocking
            for my in 0..height / 32 {
                for mx in 0..width / 16 {
                    slice.ue(25); // I_PCM
                    slice.align();
                    let mut plane = 0;
                    for (w, side) in [(width, 16), (width / 2, 8), (width / 2, 8)] {
                        for y in 0..side {
                            let row = 2 * (my * side + y) + bottom;
                            for &sample in &frame[plane + row * w + mx * side..][..side] {
                                slice.put(sample.into(), 8);
                            }
                        }
                        plane += w * (w * height / width);
                    }
                }
            }
            fields.push(slice.unit(if bottom == 0 { 0x65 } else { 0x61 }));
        }
    }
    fields.into_iter().map(|unit| [&(unit.len() as u32).to_be_bytes()[..], &unit].concat()).collect()
}

/// The configuration record of [`h264_fields`] of 160×96, whose units have lengths of four bytes.
pub fn avcc() -> Vec<u8> {
    let [sps, pps] = parameter_sets(160, 96);
    let mut record = vec![1, sps[1], sps[2], sps[3], 0xff, 0xe1];
    record.extend((sps.len() as u16).to_be_bytes());
    record.extend(&sps);
    record.push(1);
    record.extend((pps.len() as u16).to_be_bytes());
    record.extend(&pps);
    record
}

/// [`h264_fields`] as a stream with start codes and parameter sets.
pub fn annex_b(fields: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = Vec::new();
    for (n, field) in fields.iter().enumerate() {
        if n % 2 == 0 {
            for set in parameter_sets(160, 96) {
                stream.extend([0, 0, 0, 1]);
                stream.extend(set);
            }
        }
        stream.extend([0, 0, 0, 1]);
        stream.extend(&field[4..]);
    }
    stream
}

/// Packs an MPEG-4 stream's B-pictures as DivX did to get them into AVI: each travels in one chunk with the picture
/// it follows, and an empty picture fills the tick that this frees. The chunks; the first says that it is so.
pub fn pack_b_pictures(stream: &[u8]) -> Vec<Vec<u8>> {
    const PICTURE: [u8; 4] = [0, 0, 1, 0xb6];
    let starts: Vec<usize> =
        stream.windows(4).enumerate().filter(|(_, w)| *w == PICTURE).map(|(at, _)| at).collect();
    let headers = &stream[..starts[0]];
    let mut chunks = vec![[headers, b"\0\0\x01\xb2DivX503b1393p"].concat()];
    let mut begin = starts[0];
    for (n, &start) in starts.iter().enumerate() {
        let end = starts.get(n + 1).map_or(stream.len(), |&next| {
            // Headers between two pictures belong to the second, which then is no B-picture.
            let group = stream[start + 4..next].windows(4).position(|w| matches!(w, [0, 0, 1, 0xb0 | 0xb3]));
            group.map_or(next, |at| start + 4 + at)
        });
        let picture = &stream[begin..end];
        begin = end;
        let kind = stream[start + 4] >> 6;
        if n == 0 {
            chunks[0].extend(picture);
        } else if kind == 2 {
            chunks.last_mut().unwrap().extend(picture);
            // Predicted (01), no second passed (0), marker; five bits of time; marker, not coded (0); stuffing.
            let mut empty = Bits::default();
            empty.put(0b0101, 4);
            empty.put(0, 5);
            empty.put(0b10, 2);
            empty.put(0b01111, 5);
            chunks.push([&PICTURE[..], &empty.bytes].concat());
        } else {
            chunks.push(picture.to_vec());
        }
    }
    chunks
}

/// An AVI of one video stream, a chunk a tick.
pub fn avi(codec: &[u8; 4], (width, height): (u32, u32), rate: u32, chunks: &[Vec<u8>]) -> Vec<u8> {
    fn chunk(id: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let mut chunk = [&id[..], &(content.len() as u32).to_le_bytes(), content].concat();
        chunk.resize(chunk.len().next_multiple_of(2), 0);
        chunk
    }
    let list = |kind: &[u8; 4], content: &[u8]| chunk(b"LIST", &[&kind[..], content].concat());
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let count = chunks.len() as u32;
    let main = words(&[1_000_000 / rate, 0, 0, 0x10, count, 0, 1, 0, width, height, 0, 0, 0, 0]);
    let stream = [
        &b"vids"[..],
        &codec[..],
        &words(&[0, 0, 0, 1, rate, 0, count, 0, u32::MAX, 0, 0, width | height << 16]),
    ]
    .concat();
    let format =
        [&words(&[40, width, height, 1 | 24 << 16])[..], &codec[..], &words(&[0, 0, 0, 0, 0])].concat();
    let header =
        [chunk(b"avih", &main), list(b"strl", &[chunk(b"strh", &stream), chunk(b"strf", &format)].concat())];
    let (mut body, mut index) = (Vec::new(), Vec::new());
    for (n, data) in chunks.iter().enumerate() {
        let keyframe = if n == 0 { 0x10 } else { 0 };
        index.extend([&b"00dc"[..], &words(&[keyframe, 4 + body.len() as u32, data.len() as u32])].concat());
        body.extend(chunk(b"00dc", data));
    }
    let content = [list(b"hdrl", &header.concat()), list(b"movi", &body), chunk(b"idx1", &index)].concat();
    chunk(b"RIFF", &[&b"AVI "[..], &content].concat())
}

/// Makes the video of a MOV lie in another file, `path`, by an alias record in its data reference (QuickTime File
/// Format, "Data Reference Atoms"; the record as the Finder wrote it).
pub fn mov_with_reference(bytes: &[u8], path: &str) -> Vec<u8> {
    let mut record = vec![0; 10];
    record.extend([0; 1 + 27]); // volume
    record.extend([0; 12]);
    let name = path.rsplit('/').next().unwrap_or(path).as_bytes();
    record.push(name.len().min(63) as u8);
    record.extend(name.iter().copied().chain(std::iter::repeat(0)).take(63));
    record.extend([0; 16]);
    record.extend([0, 1, 0, 1]); // levels up and down
    record.extend([0; 16]);
    record.extend([0, 2]); // absolute path
    record.extend((path.len() as u16).to_be_bytes());
    record.extend(path.as_bytes());
    if path.len() % 2 == 1 {
        record.push(0);
    }
    record.extend([0xff, 0xff, 0, 0]);
    let entry = [&(12 + record.len() as u32).to_be_bytes()[..], b"alis", &[0; 4], &record].concat();

    let mut file = bytes.to_vec();
    let mut at = 0;
    let mut grown = Vec::new();
    for kind in [b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"] {
        while &file[at + 4..at + 8] != kind {
            at += u32::from_be_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        }
        grown.push(at);
        at += 8;
    }
    // Version, flags and the number of entries; then the one entry, which says "in this file".
    let old = at + 8..at + 8 + u32::from_be_bytes(file[at + 8..at + 12].try_into().unwrap()) as usize;
    let more = entry.len() as u32 - old.len() as u32;
    for begin in grown {
        let size = u32::from_be_bytes(file[begin..begin + 4].try_into().unwrap()) + more;
        file[begin..begin + 4].copy_from_slice(&size.to_be_bytes());
    }
    file.splice(old, entry);
    file
}
