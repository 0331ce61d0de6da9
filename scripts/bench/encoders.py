#!/usr/bin/env python3
"""What each of x264's presets, and each MPEG-4 quantiser, costs and gives on drawn frames: the trade behind the defaults
in crates/media/src/encode.rs.

usage: encoders.py FOLDER      with the tar_frame/ of a run: tar_1.jpg, tar_2.jpg, …

One thread, no B-frames, one keyframe, as segments are encoded. Speed is by processor time, reading the raw frames
included; quality is against the frames that went in.
"""

import pathlib
import re
import resource
import subprocess
import sys
import tempfile

X264 = ["ultrafast", "superfast", "veryfast", "faster", "fast", "medium"]


def ffmpeg(*arguments):
    command = ["ffmpeg", "-hide_banner", "-nostdin", "-y", *map(str, arguments)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stderr


def processor_time():
    """Seconds that the programs run so far have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        raw = pathlib.Path(scratch) / "drawn.y4m"
        ffmpeg("-start_number", 1, "-i", folder / "tar_%d.jpg", "-frames:v", 300, "-pix_fmt", "yuv420p", raw)
        frames = int(re.findall(r"frame=\s*(\d+)", ffmpeg("-i", raw, "-f", "null", "-"))[-1])
        print(f"{'':<28}{'frames/s':>9}{'kB/frame':>10}{'PSNR dB':>9}{'SSIM':>8}")
        wanted = [(f"x264 {preset}, crf 23", ["libx264", "-preset", preset, "-crf", 23, "-bf", 0], "mp4") for preset in X264]
        wanted += [("x264 superfast, crf 20", ["libx264", "-preset", "superfast", "-crf", 20, "-bf", 0], "mp4")]
        wanted += [(f"MPEG-4, quantiser {q}", ["mpeg4", "-qscale:v", q], "avi") for q in (2, 4, 6)]
        for name, codec, ending in wanted:
            out = pathlib.Path(scratch) / f"encoded.{ending}"
            start = processor_time()
            ffmpeg("-i", raw, "-threads", 1, "-c:v", *codec, "-g", 600, out)
            seconds = processor_time() - start
            said = ffmpeg("-i", out, "-i", raw, "-lavfi", "[0:v][1:v]psnr;[0:v][1:v]ssim", "-f", "null", "-")
            psnr = float(re.search(r"PSNR .*average:([\d.]+)", said)[1])
            ssim = float(re.search(r"SSIM .*All:([\d.]+)", said)[1])
            size = out.stat().st_size / frames / 1000
            print(f"{name:<28}{frames / seconds:>9.0f}{size:>10.2f}{psnr:>9.2f}{ssim:>8.4f}", flush=True)


if __name__ == "__main__":
    main()
