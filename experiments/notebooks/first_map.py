# SPDX-License-Identifier: GPL-3.0-or-later
# %% [markdown]
# # A first map
#
# From Bragg disks to a map of crystal orientations, on the scan that ships with jaxstem: copper,
# 64 × 64 positions, 40 grains, simulated by another program (multislice, 300 kV), so that the truth
# is known. It takes about a minute on a laptop, most of it compilation.

# %%
import matplotlib.pyplot as plt
import numpy as np

import jaxstem
from jaxstem import crystal, files, maps
from jaxstem.app.demo import sample
from jaxstem.diffraction import Microscope, Specimen

# %% [markdown]
# ## Read
#
# A scan is a list of disks for each position: scattering vectors in 1/Å, `qx` along detector rows
# (lab x) and `qy` along columns (lab y), the direct beam at the origin among them. Position
# `row * nx + column` owns the disks from one offset to the next. Your own scan:
# `jaxstem.read_disks("bragg.h5")` for what py4DSTEM or `jaxstem detect` saved,
# `jaxstem.read_scan("cube.h5")` for raw patterns too.

# %%
scan = jaxstem.read_disks(sample("cu_bragg.h5"))
counts = np.diff(scan.offsets)
print(f"{scan.scan_shape} positions, {len(counts)} in all; {np.median(counts):.0f} disks each")

# %% [markdown]
# ## Map
#
# The packaged model `cu` proposes orientations; each is verified and polished against two-beam
# diffraction. Confidence is the probability that the answer is right within 5°.

# %%
found = jaxstem.map_orientations(scan, model="cu")
assigned = found.phase >= 0
print(f"{assigned.mean():.1%} assigned, median confidence {np.median(found.confidence):.2f}")

# %% [markdown]
# Colours say which crystal direction lies along the beam (left) and along lab x, which points down
# the page (middle). Confidence is white where the orientation is known but for a turn by 180° about
# the beam.

# %%
maps.draw(found)

# %% [markdown]
# ## One pattern's answer
#
# Rings are the disks that the answer predicts, crosses those that were measured.

# %%
row, column = 41, 54
position = row * scan.scan_shape[1] + column
measured = slice(scan.offsets[position], scan.offsets[position + 1])
orientation, copper = found.orientation[row, column], found.crystals[0]
microscope, specimen = Microscope(**found.settings["microscope"]), Specimen()

limits = maps.ReportConfig(n_predicted=24)
unknown_thickness = np.full(1, np.nan)
disks = maps.predict(orientation[None], unknown_thickness, copper, microscope, specimen, limits)
reflections = crystal.reflections(copper, microscope.k_max, specimen.u_iso)
predicted = [index for index in disks.reflection[0] if index != maps.ABSENT]
q = reflections.g[predicted] @ orientation  # q_lab = R.T @ g_crystal

figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
axes.scatter(q[:, 1], q[:, 0], s=160, facecolors="none", edgecolors="tab:blue", label="predicted")
axes.scatter(scan.qy[measured], scan.qx[measured], marker="+", color="black", label="measured")
for hkl, (qx, qy) in zip(reflections.hkl[predicted], q[:, :2], strict=True):
    axes.annotate(" ".join(map(str, hkl)), (qy, qx), (0, 10), textcoords="offset points", size=8)
axes.set(xlabel="qy (1/Å)", ylabel="qx (1/Å)", aspect="equal", xlim=(-2, 2), ylim=(2, -2))
axes.set_title(f"row {row}, column {column}: confidence {found.confidence[row, column]:.2f}")
axes.legend(loc="upper right")

# %% [markdown]
# ## How right is it?
#
# Here the truth is known. "mod 180" lets the turn about the beam pass.

# %%
truth = files.read_truth(sample("cu_truth.h5"))
print(maps.to_text(maps.evaluate(found, truth)))

# %% [markdown]
# ## Elsewhere
#
# `to_orix` hands the map to [orix](https://orix.readthedocs.io); files are for other programs.

# %%
crystal_map = found.to_orix()
print(crystal_map)
files.write_map("map.h5", found, overwrite=True)
maps.export_map("map.h5", "map.ang", overwrite=True)
