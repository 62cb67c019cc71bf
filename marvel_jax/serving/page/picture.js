// The query's picture: chosen, pasted or dropped.

export const picture = { data: null, address: null };

export function forgetPicture() {
  if (picture.address) URL.revokeObjectURL(picture.address);
  picture.data = picture.address = null;
}

const hasFiles = (event) => [...event.dataTransfer.types].includes("Files");

// Until the page listens, and of whatever is dropped: no file is opened in the page's place. Dragged
// text goes where it is dropped.
for (const type of ["dragover", "drop"]) {
  document.addEventListener(type, (event) => hasFiles(event) && event.preventDefault());
}

function take(file, { most, taken, refused }) {
  if (!file) return;
  if (!file.type.startsWith("image/")) {
    refused(`“${file.name}” is no picture: nothing else can be searched by.`);
    return;
  }
  if (file.size > most) {
    const mebibytes = (bytes) => (bytes / 2 ** 20).toFixed(1);
    refused(
      `This picture has ${mebibytes(file.size)} MiB; at most ${mebibytes(most)} are taken. ` +
        "Make it smaller.",
    );
    return;
  }
  const reader = new FileReader();
  reader.addEventListener("load", () => {
    forgetPicture();
    picture.data = reader.result.slice(reader.result.indexOf(",") + 1);
    picture.address = URL.createObjectURL(file);
    taken();
  });
  reader.addEventListener("error", () => refused("This picture could not be read."));
  reader.readAsDataURL(file);
}

// `actions`: most bytes of a file, what to do when one is taken, and when it is refused.
export function listenForPictures(button, input, actions) {
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    take(input.files[0], actions);
    input.value = "";
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files || [])];
    const pasted = files.find((file) => file.type.startsWith("image/"));
    if (pasted) {
      event.preventDefault();
      take(pasted, actions);
    }
  });
  const over = (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  };
  document.addEventListener("dragenter", over);
  document.addEventListener("dragover", over);
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    take(event.dataTransfer.files[0], actions);
  });
}
