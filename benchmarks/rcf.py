"""AWS Random Cut Forest (the engine of OpenSearch's detector) on the same windows, by a small Java driver.

The two jars of version 4.4.0 are looked for in benchmarks/jars (or $RCF_JARS). From Maven Central:
    A=software.amazon.randomcutforest; for P in parkservices core; do
    mvn dependency:copy -Dtransitive=false -Dartifact=$A:randomcutforest-$P:4.4.0 \\
        -DoutputDirectory=benchmarks/jars; done
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import reference
from benchmarks.fold import Float64
from benchmarks.suites import Suite

JARS = Path(os.environ.get("RCF_JARS", Path(__file__).resolve().parent / "jars"))
DRIVER = """
import com.amazon.randomcutforest.parkservices.ThresholdedRandomCutForest;
import com.amazon.randomcutforest.config.ForestMode;
import com.amazon.randomcutforest.config.Precision;
import com.amazon.randomcutforest.config.TransformMethod;
import java.io.*;

public class Driver {
    public static void main(String[] arguments) throws Exception {
        InputStream from = new BufferedInputStream(new FileInputStream(arguments[0]));
        OutputStream to = new BufferedOutputStream(new FileOutputStream(arguments[1]));
        DataInputStream in = new DataInputStream(from);
        DataOutputStream out = new DataOutputStream(to);
        int rows = in.readInt();
        for (int r = 0; r < rows; r++) {
            int windows = in.readInt(), width = in.readInt();
            ThresholdedRandomCutForest forest = ThresholdedRandomCutForest.builder()
                .dimensions(width * 4).shingleSize(4).sampleSize(256).numberOfTrees(30).randomSeed(7L)
                .forestMode(ForestMode.STANDARD).transformMethod(TransformMethod.NORMALIZE)
                .anomalyRate(0.001).build();
            for (int t = 0; t < windows; t++) {
                double[] point = new double[width];
                for (int f = 0; f < width; f++) point[f] = in.readDouble();
                out.writeDouble(forest.process(point, 60L * t).getRCFScore());
            }
        }
        out.close();
    }
}
"""


def find_jars() -> list[Path]:
    """The jars, or nothing when Java or they are missing."""
    return sorted(JARS.glob("*.jar")) if shutil.which("java") and shutil.which("javac") else []


def scores(suite: Suite, jars: list[Path]) -> Float64:
    """RCF score of every window; one thresholded forest per series, shingles of 4."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "Driver.java").write_text(DRIVER, encoding="utf-8")
        path = os.pathsep.join([*(str(jar) for jar in jars), folder])
        subprocess.run(["javac", "-cp", path, "-d", folder, str(here / "Driver.java")], check=True)
        with (here / "in").open("wb") as file:
            file.write(np.array(len(suite.series), ">i4").tobytes())
            for row in range(len(suite.series)):
                x = reference.inputs(suite, row)
                file.write(np.array(x.shape, ">i4").tobytes() + x.astype(">f8").tobytes())
        subprocess.run(["java", "-cp", path, "Driver", str(here / "in"), str(here / "out")], check=True)
        flat = np.fromfile(here / "out", ">f8").astype(float)
    return flat.reshape(suite.values.shape[:2])
