"""Tiny studies written as real NIfTI files, in each data set's layout."""

import zlib
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np

OBLIQUE = np.array([[-0.8, 0.6, 0.0, 10.0], [0.6, 0.8, 0.0, -20.0], [0.0, 0.0, 1.0, 5.0], [0.0, 0.0, 0.0, 1.0]])


def heart(shape=(24, 28, 4), shrink=0.0):
    """An image and its label in the internal convention: LV disk in a MYO ring, RV beside it; the intensities differ."""
    x, y = np.meshgrid(np.arange(shape[0]) - shape[0] / 2, np.arange(shape[1]) - shape[1] / 2, indexing="ij")
    radius = np.hypot(x, y)
    plane = np.zeros(shape[:2], np.uint8)
    plane[(np.hypot(x + 7, y) < 4 - shrink)] = 1
    plane[radius < 6 - shrink] = 2
    plane[radius < 4 - shrink] = 3
    label = np.repeat(plane[..., None], shape[2], axis=2)
    ramp = np.add.outer(np.add.outer(np.arange(shape[0]), np.arange(shape[1])), np.arange(shape[2]))
    return (100 * label + ramp).astype(np.int16), label


def save(path, array, spacing_mm=(1.5, 1.5, 10.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = OBLIQUE @ np.diag([*spacing_mm[:3], 1.0])
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


class Writer:
    """Writes studies; every method returns the study's folder."""

    heart = staticmethod(heart)
    save = staticmethod(save)

    def acdc(self, root: Path, number=1, split="training", group="NOR", ed=1, es=9, **grid):
        folder = root / "database" / split / f"patient{number:03d}"
        for frame, shrink in ((ed, 0.0), (es, 1.0)):
            image, label = heart(shrink=shrink, **grid)
            save(folder / f"patient{number:03d}_frame{frame:02d}.nii.gz", image + np.int16(number))
            save(folder / f"patient{number:03d}_frame{frame:02d}_gt.nii.gz", label)
        (folder / "Info.cfg").write_text(f"ED: {ed}\nES: {es}\nGroup: {group}\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n")
        return folder

    def mnms(self, root: Path, codes=("A0S9V9",), place="Training/Labeled", vendor="Siemens", centre=1, ed=0, es=2, group="NOR"):
        top = root / "OpenDataset"
        table = top / "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        text = table.read_text() if table.exists() else ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight\n"
        for code in codes:
            images, masks = zip(*(heart(shrink=s) for s in (0.0, 0.5, 1.0)), strict=True)
            masks = [np.choose(mask, (0, 3, 2, 1)).astype(np.uint8) for mask in masks]
            masks[1] = np.zeros_like(masks[1])
            save(top / place / code / f"{code}_sa.nii.gz", np.stack(images, -1))
            save(top / place / code / f"{code}_sa_gt.nii.gz", np.stack(masks, -1))
            text += f"{text.count(chr(10)) - 1},{code},{vendor},A,{centre},{ed},{es},50,{group},F,170,70\n"
        table.write_text(text)
        return top / place / codes[-1]

    def mnms2(self, root: Path, number=1, vendor="GE MEDICAL SYSTEMS", group="HCM"):
        folder = root / "MnM2" / "dataset" / f"{number:03d}"
        for frame, shrink in (("ED", 0.0), ("ES", 1.0)):
            image, label = heart(shrink=shrink)
            save(folder / f"{number:03d}_SA_{frame}.nii.gz", image.astype(np.float64))
            save(folder / f"{number:03d}_SA_{frame}_gt.nii.gz", np.choose(label, (0, 3, 2, 1)).astype(np.float64))
        table = root / "MnM2" / "dataset_information.csv"
        text = table.read_text() if table.exists() else "SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD\n"
        table.write_text(f"{text}{number},{group},{vendor},Signa,1.5\n")
        return folder


COHORT: Mapping[str, int] = {"Siemens": 10, "Philips": 8, "GE": 6, "Canon": 8}
"""Vendor -> number of studies, half of them normal (NOR), half dilated (DCM)."""


def cohort(root: Path, vendors: Mapping[str, int] = COHORT) -> Path:
    """A cohort in the M&Ms layout in which no two studies are alike: noise by study, contrast by vendor, a wider cavity in DCM."""
    top = root / "OpenDataset"
    lines = ["External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"]
    for centre, (vendor, count) in enumerate(vendors.items(), 1):
        for number in range(count):
            code, group = f"{vendor[0]}{number}V{centre}", ("NOR", "DCM")[number % 2]
            rng = np.random.default_rng(zlib.crc32(code.encode()))
            images, masks = zip(*(heart(shrink=s - (group == "DCM")) for s in (0.0, 0.5, 1.0)), strict=True)
            masks = [np.choose(mask, (0, 3, 2, 1)).astype(np.uint8) for mask in masks]
            masks[1] = np.zeros_like(masks[1])
            noisy = [(image / centre + rng.normal(0, 30, image.shape)).astype(np.int16) for image in images]
            save(top / "Training" / "Labeled" / code / f"{code}_sa.nii.gz", np.stack(noisy, -1))
            save(top / "Training" / "Labeled" / code / f"{code}_sa_gt.nii.gz", np.stack(masks, -1))
            lines.append(f"{code},{vendor},A,{centre},0,2,50,{group},F,170,70")
    (top / "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv").write_text("\n".join(lines) + "\n")
    return root
