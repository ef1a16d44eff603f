"""Tables as people have them, each with the one box or class that it holds."""

import pytest

from parts.errors import UserError
from tools.shared.csv_files import read_table

PIXELS = "10,20,60,70"  # of a.jpg, in every table
TABLES = {
    "TensorFlow": "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,100,80,cat,10,20,60,70",
    "capitals": f"Name,XMin,YMin,XMax,YMax,Class,Split\na.jpg,{PIXELS},cat,VAL",
    "spaces": f"Image Name, X Min, Y Min, X Max, Y Max\na.jpg, {PIXELS}",
    "x1": f"image,x1,y1,x2,y2,label\na.jpg,{PIXELS},cat",
    "x0": f"image,x0,y0,x1,y1\na.jpg,{PIXELS}",
    "left": f"file,left,top,right,bottom\na.jpg,{PIXELS}",
    "x, y, w, h": "name,x,y,w,h\na.jpg,10,20,50,50",
    "left and width": "name,left,top,width,height\na.jpg,10,20,50,50",
    "the box's width": "name,xmin,ymin,xmax,ymax,width,height\na.jpg,10,20,60,70,50,50",
    "a name of the object": f"filename,name,xmin,ymin,xmax,ymax\na.jpg,cat,{PIXELS}",
    "prefixes": "fname,bbox_x,bbox_y,bbox_width,bbox_height,width,height\na.jpg,10,20,50,50,100,80",
    "signs": "Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId;Path\n100;80;10;20;60;70;3;a.jpg",
    "centre": "name,x_center,y_center,width,height\na.jpg,35,45,50,50",
    "order of columns": "ImageID,XMin,XMax,YMin,YMax\na.jpg,10,60,20,70",
    "semicolons": "name;xmin;ymin;xmax;ymax\na.jpg;10,0;20;60;70,0",
    "tabs": "name\txmin\tymin\txmax\tymax\na.jpg\t10\t20\t60\t70",
    "bars": "name|xmin|ymin|xmax|ymax\na.jpg|10|20|60|70",
    "Excel": "sep=;\nname;xmin;ymin;xmax;ymax\na.jpg;10;20;60;70",
    "comments": f"# by hand, 2024\nname,xmin,ymin,xmax,ymax\n#b,1,2,3,4\na.jpg,{PIXELS}",
    "numpy": f"# name,xmin,ymin,xmax,ymax\na.jpg,{PIXELS}",
    "pandas": f",name,xmin,ymin,xmax,ymax,class\n0,a.jpg,{PIXELS},1.0",
    "empty rows": f"\nname,xmin,ymin,xmax,ymax,,\n\na.jpg,{PIXELS},,,,\n,,,,,,\n",
    "Windows": f"name,xmin,ymin,xmax,ymax\r\n\r\na.jpg,{PIXELS}\r\n",
    "quotes": '"name","xmin","ymin","xmax","ymax"\n"a.jpg","10","20","60","70"',
    "further columns": f"name,depth,xmin,ymin,xmax,ymax,pose,depth\na.jpg,1,{PIXELS},left,2",
}
SAY_MORE = {  # size of the picture, class, split
    "TensorFlow": ((100, 80), "cat", ""),
    "prefixes": ((100, 80), "", ""),
    "signs": ((100, 80), "3", ""),
    "capitals": (None, "cat", "val"),
    "a name of the object": (None, "cat", ""),
    "x1": (None, "cat", ""),
    "pandas": (None, "1", ""),
}


def read(folder, text, encoding="utf-8"):
    path = folder / "known.csv"
    path.write_bytes(text.encode(encoding))
    return read_table(path)


@pytest.mark.parametrize("kind", TABLES)
def test_usual_tables_are_read(tmp_path, kind):
    (note,), words, problems = read(tmp_path, TABLES[kind])
    assert note.name == "a.jpg" and note.box == (10, 20, 60, 70) and not problems
    assert (note.size, note.label, note.split) == SAY_MORE.get(kind, (None, "", ""))
    assert words.startswith("known.csv: 1 rows") and "in pixels" in words


def test_what_was_understood_is_one_line(tmp_path):
    text = "# old\nFile;X;Y;W;H;Species;depth;pose\na.jpg;1;2;3;4;cat;;left\nb.jpg;1;2;3;4;;;"
    assert read(tmp_path, text)[1] == (
        "known.csv: 2 rows (semicolons); name: File; box: X, Y, W, H (corner and size, in pixels); "
        "class: Species; not used: depth, pose; comment lines left out: 1"
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_encodings(tmp_path, encoding):
    (note,), _, _ = read(tmp_path, "name,class\nMüsli.jpg,süß", encoding)
    assert (note.name, note.label) == ("Müsli.jpg", "süß")


def test_fractions_are_found_out(tmp_path):
    text = "name,xmin,ymin,xmax,ymax,width,height\na,.1,.2,.6,.7,640,480\nb,0,0,1,1,640,480"
    notes, words, _ = read(tmp_path, text)
    assert [note.box for note in notes] == [(0.1, 0.2, 0.6, 0.7), (0, 0, 1, 1)]
    assert [note.size for note in notes] == [(1, 1)] * 2 and "(corners, as fractions)" in words
    notes, words, _ = read(tmp_path, "name,cx,cy,w,h\na,0.5,0.5,0.5,0.25")
    assert notes[0].box == (0.25, 0.375, 0.75, 0.625) and "centre and size, as fractions" in words
    notes, words, _ = read(tmp_path, "name,xmin,ymin,xmax,ymax\na,.1,.2,.6,.7\nb,0,0,9,9")
    assert notes[0].size is None and "in pixels" in words


@pytest.mark.parametrize("cell", ["", "nan", "NaN", "NA", "N/A", "None", "null", "-", "#N/A"])
def test_cells_that_say_nothing(tmp_path, cell):
    row = ",".join(["a.jpg", *[cell] * 6])
    (note,), _, problems = read(tmp_path, f"name,xmin,ymin,xmax,ymax,class,split\n{row}")
    assert note[2:] == ((), None, "", "", (), None, "") and not problems


def test_rows_that_cannot_be_right_are_named_by_their_line(tmp_path):
    text = "name,xmin,ymin,xmax,ymax,class\na,1,2,3,4,cat,dog\n\n,1,2,3,4,cat\nb,1,x,,4,cat\nc,1"
    notes, words, problems = read(tmp_path, text)
    assert problems == [
        (2, "expected 6 cells like the first line, found 7"),
        (4, "expected the name of a picture, found none"),
    ]
    assert [note.name for note in notes] == ["b", "c"] and words.startswith("known.csv: 2 rows")
    assert notes[0].problem == "expected 4 numbers, found 1, x, nothing, 4" and not notes[0].box
    assert notes[0].where == "known.csv line 5" and notes[0].label == "cat"
    assert notes[1].problem == "expected 4 numbers, found 1, nothing, nothing, nothing"
    (note,), _, _ = read(tmp_path, "name,xmin,ymin,xmax,ymax\na,1,2,inf,4")
    assert note.problem == "expected 4 numbers, found 1, 2, inf, 4"


def test_other_columns_that_are_called_like_a_split(tmp_path):
    (note,), words, _ = read(tmp_path, "name,class,dataset\na,cat,farm")
    assert note.split == "" and words.endswith("class: class; not used: dataset")
    (note,), _, _ = read(tmp_path, "name,subset\na,Training")
    assert note.split == "train"


EXPECTED = "expected the columns name and any of xmin, ymin"
ONCE = "expected each column once, found"
MISTAKES = {
    "no name": ("xmin,ymin,xmax,ymax\n1,2,3,4", f"{EXPECTED}.*found xmin, ymin, xmax, ymax"),
    "no column": ("name,colour\na,red", f"{EXPECTED}.*found name, colour"),
    "no header": ("a.jpg,1,2,3,4\nb.jpg,1,2,3,4", f"{EXPECTED}.*found a.jpg, 1, 2, 3, 4"),
    "nothing": ("", "expected the columns name .*, found no rows"),
    "no row": ("name,class\n", "expected rows below the column names, found none"),
    "half a box": ("name,xmin,ymin,xmax\na,1,2,3", "expected the columns xmin, .*, found no ymax"),
    "a side": ("name,xmin,ymin,xmax,ymax,xmin\na,1,2,3,4,5", f"{ONCE} 2 for xmin: xmin, xmin"),
    "a class twice": ("name,class,Class\na,b,c", f"{ONCE} class 2 times"),
    "a name twice": ("name,name,class\na,b,c", f"{ONCE} name 2 times"),
    "a split": ("name,split\na,\nb,dev", "line 3: expected train, val, test or nothing as split, "),
    "a workbook": ("PK\3\4 and so on", "expected a CSV file, found a workbook; save it as CSV"),
    "a binary file": ("name,class\0", "expected a CSV file, found something else than text"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_one_line(tmp_path, kind):
    text, message = MISTAKES[kind]
    with pytest.raises(UserError, match=rf"^--table .*known\.csv: {message}"):
        read(tmp_path, text)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: expected a CSV file, found No such file"):
        read_table(tmp_path / "none.csv")


def test_corners_of_a_tilted_box_are_no_box(tmp_path):
    notes, words, _ = read(tmp_path, "name,x1,y1,x2,y2,x3,y3,x4,y4,class\na,1,2,3,4,5,6,7,8,cat")
    assert notes[0].box == () and "not used: x1, y1, x2" in words


def test_a_cell_of_two_lines_stays_in_one(tmp_path):
    notes, words, _ = read(tmp_path, 'name,class,"what\nI saw"\na,"big\ncat",x\nb,dog,y')
    assert [note.label for note in notes] == ["big cat", "dog"] and notes[1].where.endswith(
        "line 5"
    )
    assert words.endswith("not used: what I saw")
