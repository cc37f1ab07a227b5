"""What patch features look like, as PNGs: PCA colours and similarity to one patch."""

import os

import numpy as np
from PIL import Image, ImageDraw

from dinojax.files.drafts import open_new

_GAP = 4  # pixels between pictures
_TEXT = 16  # pixels, height of a line of text
_BACKGROUND = (24, 24, 24)
_INK = (235, 235, 235)
_MARK = (255, 40, 40)

# Cosine similarity 0, 1/4, 1/2, 3/4, 1 as colours, dark to bright so that grey prints keep order.
_RAMP = np.array([(10, 12, 45), (45, 45, 130), (30, 130, 145), (110, 195, 90), (250, 235, 60)])


def pca_colors(patches_BPD: np.ndarray) -> np.ndarray:
    """Colours [B, P, 3] in 0..1: sigmoid(2 x) of the first three whitened principal components.

    One PCA over all patches of all images, so colours mean the same in every image. DINOv3,
    arXiv:2508.10104, figure 13. The largest loading of a component is positive, which fixes its
    sign; components without variance are mid-grey.
    """
    num_images, num_patches, width = patches_BPD.shape
    values_ND = np.asarray(patches_BPD, np.float64).reshape(-1, width)
    centered_ND = values_ND - values_ND.mean(axis=0)
    _, lengths, loadings = np.linalg.svd(centered_ND, full_matrices=False)
    colors_N3 = np.zeros((len(values_ND), 3))
    floor = 1e-6 * max(lengths[0], 1e-6 * np.linalg.norm(values_ND))
    for number in range(min(3, len(lengths))):
        if lengths[number] <= floor:
            continue
        loading_D = loadings[number]
        sign = np.sign(loading_D[np.argmax(np.abs(loading_D))])
        std = lengths[number] / np.sqrt(len(values_ND) - 1)
        colors_N3[:, number] = centered_ND @ loading_D * sign / std
    return (1 / (1 + np.exp(-2 * colors_N3))).reshape(num_images, num_patches, 3)


def similarities(patches_BPD: np.ndarray, patch: int) -> np.ndarray:
    """Cosine [B, P] of every patch to patch number `patch` of the same image."""
    values_BPD = np.asarray(patches_BPD, np.float64)
    norms_BP1 = np.linalg.norm(values_BPD, axis=-1, keepdims=True)
    unit_BPD = values_BPD / np.maximum(norms_BP1, 1e-12)
    return np.einsum("BPD,BD->BP", unit_BPD, unit_BPD[:, patch])


def pca_picture(patches_BPD: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """uint8 [B, rows, columns, 3], one pixel per patch of the grid (rows, columns)."""
    colors_BP3 = pca_colors(_checked(patches_BPD, grid))
    return np.round(255 * colors_BP3).astype(np.uint8).reshape(-1, *grid, 3)


def similarity_picture(patches_BPD: np.ndarray, grid: tuple[int, int], patch: int) -> np.ndarray:
    """uint8 [B, rows, columns, 3]; dark is a cosine of 0 or less, bright yellow 1."""
    cosine_BP = np.clip(similarities(_checked(patches_BPD, grid), patch), 0, 1)
    places = np.linspace(0, 1, len(_RAMP))
    channels = [np.interp(cosine_BP, places, _RAMP[:, channel]) for channel in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8).reshape(-1, *grid, 3)


def patch_sheet(
    path: str | os.PathLike,
    images_BHWC: np.ndarray,
    patches_BPD: np.ndarray,
    *,
    grid: tuple[int, int],
    patch: int | None = None,
) -> None:
    """A PNG with a row per image: image with the chosen patch marked, PCA, similarity to it."""
    columns = {"image": _marked(images_BHWC, grid, patch)}
    columns |= _columns("", images_BHWC, patches_BPD, grid=grid, patch=patch)
    _save_table(path, columns)


def before_after(
    path: str | os.PathLike,
    images_BHWC: np.ndarray,
    patches_before_BPD: np.ndarray,
    patches_after_BPD: np.ndarray,
    *,
    grid: tuple[int, int],
    patch: int | None = None,
) -> None:
    """A PNG with a row per image: image, then PCA and similarity before and after training.

    Images may be uint8 or normalised floats; `patch` defaults to the middle of the grid. PCA
    is fitted before and after apart, so colours cannot be compared between the two.
    """
    columns = {"image": _marked(images_BHWC, grid, patch)}
    columns |= _columns(" before", images_BHWC, patches_before_BPD, grid=grid, patch=patch)
    columns |= _columns(" after", images_BHWC, patches_after_BPD, grid=grid, patch=patch)
    _save_table(path, columns)


def crop_sheet(path: str | os.PathLike, *crop_sets_BNHWC: np.ndarray, max_images: int = 8) -> None:
    """A PNG with a row per image of a batch: its global crops, local crops, ... side by side.

    Floats are stretched from the smallest to the largest value of a crop; give `true_colors`.
    """
    rows = []
    for number in range(min(max_images, len(crop_sets_BNHWC[0]))):
        crops = [crop for crops_BNHWC in crop_sets_BNHWC for crop in crops_BNHWC[number]]
        rows.append([_to_rgb(crop) for crop in crops])
    _save_rows(path, rows, labels=())


def true_colors(
    images_HWC: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]
) -> np.ndarray:
    """Normalised images [..., H, W, C] as uint8 of the values they were made from.

    mean, std: per channel, of values in 0..1. Without them (each crop has its own, which is not
    kept) the images stay as they are, to be stretched over all channels alike.
    """
    if not len(mean):
        return images_HWC
    values_HWC = np.asarray(images_HWC, np.float64) * np.asarray(std) + np.asarray(mean)
    return np.round(255 * np.clip(values_HWC, 0, 1)).astype(np.uint8)


def _checked(patches_BPD: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    if patches_BPD.ndim != 3 or patches_BPD.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f"patches of shape {patches_BPD.shape} do not fill a grid of {grid[0]} x {grid[1]}; "
            "leave out cls and registers."
        )
    return np.asarray(patches_BPD, np.float64)


def _middle(grid: tuple[int, int], patch: int | None) -> int:
    return grid[0] // 2 * grid[1] + grid[1] // 2 if patch is None else patch


def _columns(suffix: str, images_BHWC, patches_BPD, *, grid, patch) -> dict[str, list[np.ndarray]]:
    size = images_BHWC.shape[1:3]
    pca_BHWC = pca_picture(patches_BPD, grid)
    similarity_BHWC = similarity_picture(patches_BPD, grid, _middle(grid, patch))
    return {
        f"PCA{suffix}": [_enlarged(picture, size) for picture in pca_BHWC],
        f"similarity{suffix}": [_enlarged(picture, size) for picture in similarity_BHWC],
    }


def _to_rgb(image_HWC: np.ndarray) -> np.ndarray:
    """uint8 as it is, floats stretched to 0..255; grey repeated, more than 3 channels cut."""
    if image_HWC.dtype != np.uint8:
        values = np.asarray(image_HWC, np.float64)
        low, high = values.min(), values.max()
        image_HWC = np.round(255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8)
    if image_HWC.shape[2] < 3:
        return np.repeat(image_HWC[:, :, :1], 3, axis=2)
    return image_HWC[:, :, :3]


def _marked(images_BHWC: np.ndarray, grid: tuple[int, int], patch: int | None) -> list[np.ndarray]:
    """The images with a frame around the chosen patch."""
    row, column = divmod(_middle(grid, patch), grid[1])
    height, width = images_BHWC.shape[1] // grid[0], images_BHWC.shape[2] // grid[1]
    marked = []
    for image_HWC in images_BHWC:
        picture = Image.fromarray(_to_rgb(image_HWC))
        left, top = column * width, row * height
        frame = (left, top, left + width - 1, top + height - 1)
        ImageDraw.Draw(picture).rectangle(frame, outline=_MARK, width=max(1, width // 8))
        marked.append(np.asarray(picture))
    return marked


def _enlarged(picture_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour enlargement, so that a patch stays a square of one colour."""
    nearest = Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture_HWC).resize((size[1], size[0]), nearest))


def _save_table(path: str | os.PathLike, columns: dict[str, list[np.ndarray]]) -> None:
    """Columns of equal pictures under their names; small pictures are enlarged to hold the text."""
    factor = max(1, -(-128 // next(iter(columns.values()))[0].shape[1]))
    enlarged = [
        [
            _enlarged(picture, (factor * picture.shape[0], factor * picture.shape[1]))
            for picture in c
        ]
        for c in columns.values()
    ]
    _save_rows(path, list(zip(*enlarged, strict=True)), labels=tuple(columns))


def _save_rows(path: str | os.PathLike, rows, *, labels: tuple[str, ...]) -> None:
    """Rows of RGB pictures on a dark sheet, with labels above the pictures of the first row."""
    head = _TEXT if labels else 0
    width = max(sum(picture.shape[1] + _GAP for picture in row) for row in rows) + _GAP
    heights = [max(picture.shape[0] for picture in row) + _GAP for row in rows]
    sheet = Image.new("RGB", (width, head + sum(heights) + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = head + _GAP
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        left = _GAP
        for column, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (left, top))
            if number == 0 and labels:
                draw.text((left, 2), labels[column], fill=_INK)
            left += picture.shape[1] + _GAP
        top += height
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open_new(path) as file:
        sheet.save(file, format="PNG")
