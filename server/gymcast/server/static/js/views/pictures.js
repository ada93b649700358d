// Games that draw themselves: pictures of an episode, shown one after the other.

const PATIENCE = "There is no picture of this moment.";

export async function createView(canvas, data) {
  const pictures = await Promise.all(data.frames.map(load));
  return new PicturesView(canvas, data, pictures.filter(Boolean));
}

async function load({ t, image }) {
  if (!image) return null;
  const element = new Image();
  element.src = image;
  await element.decode();
  return { t, element };
}

class PicturesView {
  constructor(canvas, data, pictures) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.pictures = pictures;
    this.name = data.env_id;
    this.note = data.scene?.note ?? "";
    this.duration = data.frames.at(-1)?.t ?? 0;
    this.marks = [];
  }

  board() {
    return null;
  }

  describe(t) {
    const place = `${this.name} after ${t.toFixed(1)} seconds`;
    return this.note ? `${place}. ${this.note}` : place;
  }

  draw(t) {
    const { canvas, context } = this;
    const ratio = devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * ratio);
    const height = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#101418";
    context.fillRect(0, 0, width, height);
    const picture = this.pictures.findLast((one) => one.t <= t + 1e-6)?.element;
    const caption = this.note || (picture ? "" : PATIENCE);
    const room = caption ? 34 * ratio : 0;
    if (picture) {
      const scale = Math.min(width / picture.naturalWidth, (height - room) / picture.naturalHeight);
      const [w, h] = [picture.naturalWidth * scale, picture.naturalHeight * scale];
      context.imageSmoothingEnabled = scale < 4; // a few pixels each stay squares
      context.drawImage(picture, (width - w) / 2, (height - room - h) / 2, w, h);
    }
    if (caption) this.#caption(caption, ratio, picture ? height - room / 2 : height / 2);
  }

  #caption(text, ratio, y) {
    const { context, canvas } = this;
    context.font = `${14 * ratio}px system-ui, sans-serif`;
    context.fillStyle = "#d7dde3";
    context.textAlign = "center";
    context.textBaseline = "middle";
    const lines = [""];
    for (const word of text.split(" ")) {
      const longer = `${lines.at(-1)} ${word}`.trim();
      if (context.measureText(longer).width > canvas.width * 0.9 && lines.at(-1)) lines.push(word);
      else lines[lines.length - 1] = longer;
    }
    lines.forEach((line, index) => context.fillText(line, canvas.width / 2, y + (index - (lines.length - 1) / 2) * 20 * ratio));
  }
}
