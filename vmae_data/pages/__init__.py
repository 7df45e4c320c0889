"""What pages and pictures are drawn with: HTML, charts as SVG, images."""
