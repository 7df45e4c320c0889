// Browsers start no worker for a page of the file system. There, this class runs a worker's script in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.addEventListener("load", () => this.run(url), {once: true})
      document.documentElement.append(this.frame)
    }

    run(url) {
      const inside = this.frame.contentWindow
      const script = inside.document.createElement("script")
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}))
      script.addEventListener("load", () => {
        this.send = data => inside.dispatchEvent(new inside.MessageEvent("message", {data}))
        this.waiting.forEach(this.send)
      })
      script.src = new URL(url, location.href).href
      inside.document.head.append(script)
    }

    postMessage(data) {
      if (this.send) setTimeout(() => this.send(data))
      else this.waiting.push(data)
    }

    terminate() {
      this.frame.remove()
    }
  }
}
